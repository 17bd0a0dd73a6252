"""What is run in a folder with the files of bad_input_files.py, and what its line on standard error has to hold."""

import torch

from bad_input_files import CUTS
from bad_machine_cases import GOOD_MACHINES, MACHINES
from bad_plan_cases import GOOD_PLANS, PLANS
from bad_serve_cases import SERVE

X = "--input 'float32[2,128]'"
CPU = f"--device cpu {X}"
EXPORT = ("torch.jit.script", ".save(")

# What is run in the folder of all these files, and what its line holds: what is wrong, and what to do.
ARCHIVES = [
    ("no_such_file.pt", "no_such_file.pt", "no such file"),
    ("nowhere/model.pt", "nowhere/model.pt", "no such file"),
    ("stack.pt/model.pt", "stack.pt/model.pt", "no such file"),
    ("dangling.pt", "dangling.pt", "no such file"),
    ("loop.pt", "loop.pt"),
    ("''", "MODEL"),
    ("folder.pt", "folder.pt", "directory"),
    (".", ".: ", "directory"),
    ("locked.pt", "locked.pt", "can not be opened", "ermission denied"),
    ("/dev/null", "/dev/null", "is not a regular file"),
    ("/dev/zero", "/dev/zero", "is not a regular file"),
    ("pipe.pt", "pipe.pt", "not a"),
    ("empty.pt", "empty.pt", "is empty"),
    ("text.pt", "text.pt", "not a TorchScript archive", *EXPORT),
    ("random.pt", "random.pt", "not a TorchScript archive", *EXPORT),
    ("end.pt", "end.pt", "not a TorchScript archive", *EXPORT),
    ("magic.pt", "magic.pt", "archive"),
    ("state.pt", "state.pt", "state dict", "load_state_dict", *EXPORT),
    ("legacy.pt", "legacy.pt", "before PyTorch 1.6", *EXPORT),
    ("tensor.pt", "tensor.pt", "torch.save", *EXPORT),
    ("good.calls.pt", "good.calls.pt", "torch.save", *EXPORT),
    ("pickled.pt", "pickled.pt", "pickled nn.Module", "torch.load", *EXPORT),
    ("pickle.pt", "pickle.pt", "pickle", *EXPORT),
    ("model.safetensors", "model.safetensors", "safetensors", "load_state_dict", *EXPORT),
    ("model.gguf", "model.gguf", "GGUF", *EXPORT),
    ("model.h5", "model.h5", "HDF5", *EXPORT),
    ("model.npy", "model.npy", "not a TorchScript archive", *EXPORT),
    ("other.zip", "other.zip", "zip file", *EXPORT),
    ("folders.zip", "folders.zip", "zip file of another kind", *EXPORT),
    ("program.pt2", "program.pt2", "torch.export", *EXPORT),
    ("unknown.pt", "unknown.pt", "elsewhere::twice", "--library"),
    *((f"cut{cut}.pt", f"cut{cut}.pt", "archive") for cut in CUTS),
    ("damaged_version.pt", "damaged_version.pt", "9999"),
    ("damaged_noversion.pt", "damaged_noversion.pt", "version"),
    ("damaged_nodata.pt", "damaged_nodata.pt", "data.pkl"),
    ("damaged_data.pt", "damaged_data.pt", "can not be loaded"),
    ("damaged_halfdata.pt", "damaged_halfdata.pt", "is damaged"),
    ("damaged_constants.pt", "damaged_constants.pt", "is damaged"),
    ("damaged_nocode.pt", "damaged_nocode.pt", "can not be loaded"),
    ("damaged_code.pt", "damaged_code.pt", "can not be loaded"),
    ("damaged_order.pt", "damaged_order.pt", "big"),
    ("damaged_notensor.pt", "damaged_notensor.pt", "data/0"),
]

SIZE = ("give bytes, or a number with KiB, MiB or GiB",)
BUDGETS = [
    ("--vram abc", "--vram", "'abc'", *SIZE),
    ("--vram ''", "--vram"),
    ("--vram -1", "--vram", "-1"),
    ("--vram=-1", "--vram", "'-1'", *SIZE),
    ("--vram 0", "--vram is 0", "give bytes"),
    ("--vram 0.4B", "--vram", "0", "give bytes"),
    ("--vram nan", "--vram", "'nan'", *SIZE),
    ("--vram infGiB", "--vram", "'infGiB'", *SIZE),
    ("--vram 8GB", "--vram", "'8GB'", *SIZE),
    ("--vram 8TiB", "--vram", "'8TiB'", *SIZE),
    ("--vram '8 GiB'", "--vram", "'8 GiB'", *SIZE),
    ("--vram 1e3", "--vram", "'1e3'", *SIZE),
    ("--vram 1,5GiB", "--vram", "'1,5GiB'", *SIZE),
    ("--vram 18446744073709551616", "--vram", "18446744073709551616", "64 bits"),
    ("--vram 99999999999999GiB", "--vram", "99999999999999GiB", "64 bits"),
    ("--vram 1", "--vram 1 B", "smallest that works is {smallest}"),
    ("--vram {below}", "--vram", "{below} bytes", "smallest that works is {smallest}"),
    ("--host lots", "--host", "'lots'", *SIZE),
    ("--host 1KiB", "--host 1 KiB", "too small"),
    ("--host 0", "--host", "too small"),
    ("--pinned 3PiB", "--pinned", "'3PiB'", *SIZE),
    ("--pinned=-1", "--pinned", "'-1'", *SIZE),
    ("--host 1MiB --pinned 2MiB", "--pinned 2 MiB", "--host 1 MiB"),
    ("--vram 1MiB --vram 2MiB", "--vram"),
    ("--vram", "--vram", "missing"),
]

SPEC = ("write it as 'float32[1024,1024]'",)
INPUTS = [
    ("--input ''", "input"),
    ("--input float32", "'float32'", *SPEC),
    ("--input 'float32[2,128'", "'float32[2,128'", *SPEC),
    ("--input 'float32]2,128['", "'float32]2,128['", *SPEC),
    ("--input '[2,128]'", "'[2,128]'", "float32", *SPEC),
    ("--input 'float[2,128]'", "'float'", "float32, float64", *SPEC),
    ("--input 'float8[2,128]'", "'float8'", "float32, float64", *SPEC),
    ("--input 'float32[-2,128]'", "'-2' is not a size", *SPEC),
    ("--input 'float32[a,128]'", "'a' is not a size", *SPEC),
    ("--input 'float32[2.5,128]'", "'2.5' is not a size", *SPEC),
    ("--input 'float32[2, 128]'", "' 128' is not a size", *SPEC),
    ("--input 'float32[,128]'", "'' is not a size", *SPEC),
    ("--input 'float32[2,128,]'", "missing after the last comma", *SPEC),
    ("--input 'float32[99999999999,99999999999]'", "'float32[99999999999,99999999999]'", "elements", *SPEC),
    ("--input 'float32[99999999999999999999]'", "'99999999999999999999'", *SPEC),
    ("--input 'float32[9223372036854775807,2]'", "'float32[9223372036854775807,2]'", "elements", *SPEC),
    ("--input 'float32[0,9223372036854775807]'", "inputs", "9223372036854775807"),
    ("--input 'float32[8388608,8388608]'", "'float32[8388608,8388608]'", "memory"),
    ("--input 'float32[2,128]<5'", "'<5'", "only integers have a bound", *SPEC),
    ("--input 'float32[2,128]x'", "'x'", *SPEC),
    ("--input 'int64[2,128]<0'", "'int64[2,128]<0'", "bound must be 1 to", *SPEC),
    ("--input 'int64[2,128]<-3'", "'int64[2,128]<-3'", "'-3'", *SPEC),
    ("--input 'int64[2,128]<'", "'int64[2,128]<'", *SPEC),
    ("--input 'int8[2,128]<999'", "'int8[2,128]<999'", "bound must be 1 to 128", *SPEC),
    ("--input 'int64[2,128]<99999999999999999999'", "'99999999999999999999'", *SPEC),
    ("--input", "--input", "missing"),
    # These are well-formed, but not for this model.
    ("--input 'float32[2,129]'", "inputs", "129"),
    ("--input 'float32[]'", "inputs"),
    ("--input 'float32[0]'", "inputs"),
    ("--input 'int64[2,128]'", "inputs", "dtype"),
    ("--input 'float64[2,128]'", "inputs", "dtype"),
    ("--input 'complex64[2,128]'", "inputs", "dtype"),
    (f"{X} {X}", "forward", "argument"),
]

CALLS = [
    ("straight.pt --inputs no_such.pt", "no_such.pt", "can not be opened"),
    ("straight.pt --inputs ''", "--inputs"),
    ("straight.pt --inputs folder.pt", "folder.pt", "torch.save"),
    ("straight.pt --inputs nothing.calls.pt", "nothing.calls.pt", "torch.save"),
    ("straight.pt --inputs garbage.calls.pt", "garbage.calls.pt", "torch.save"),
    ("straight.pt --inputs half.calls.pt", "half.calls.pt", "torch.save"),
    ("straight.pt --inputs module.calls.pt", "module.calls.pt", "torch.save"),
    ("straight.pt --inputs meta.calls.pt", "meta.calls.pt", "torch.save"),
    ("straight.pt --inputs model.npy", "model.npy", "torch.save"),
    ("straight.pt --inputs straight.pt", "straight.pt", "torch.save"),
    ("straight.pt --inputs legacy.pt", "legacy.pt", "torch.save"),
    ("straight.pt --inputs dict.calls.pt", "dict.calls.pt", "torch.save([[x0, y0], [x1, y1]], path)"),
    ("straight.pt --inputs tensor.calls.pt", "tensor.calls.pt", "torch.save([[x0, y0], [x1, y1]], path)"),
    ("straight.pt --inputs string.calls.pt", "string.calls.pt", "torch.save([[x0, y0], [x1, y1]], path)"),
    ("straight.pt --inputs none.calls.pt", "none.calls.pt", "holds no call"),
    ("straight.pt --inputs good.calls.pt --save straight.pt", "--save", "straight.pt"),
    ("straight.pt --inputs good.calls.pt --save good.calls.pt", "--save", "good.calls.pt"),
    ("straight.pt --inputs cyclic.calls.pt", "cyclic.calls.pt", "nested"),
    ("straight.pt --inputs empty_call.calls.pt", "forward", "'x'"),
    ("straight.pt --inputs two.calls.pt", "forward", "argument"),
    ("straight.pt --inputs text.calls.pt", "'x'", "Tensor"),
    ("straight.pt --inputs nones.calls.pt", "'x'", "Tensor"),
    ("straight.pt --inputs wide.calls.pt", "inputs", "129"),
    ("straight.pt --inputs second.calls.pt", "inputs", "129"),
    ("straight.pt --inputs rank.calls.pt", "inputs"),
    ("straight.pt --inputs integers.calls.pt", "inputs", "dtype"),
    ("signatures.pt --inputs good.calls.pt", "forward", "'times'"),
    ("signatures.pt --inputs no_key.calls.pt", "inputs", "y"),
    ("signatures.pt --inputs times.calls.pt", "'times'", "int"),
    ("signatures.pt --inputs values.calls.pt", "'named'", "Tensor"),
    ("signatures.pt --inputs keys.calls.pt", "'named'", "str"),
    ("signatures.pt --method joined --inputs mixed_parts.calls.pt", "'parts'", "Tensor"),
    (f"signatures.pt --method nothing {X}", "nothing", "argument"),
    ("signatures.pt", "Tensor x, int times, Dict(str, Tensor) named", "--inputs"),
    ("straight.pt", "Tensor x", "--input 'float32[1,128]'"),
    (f"signatures.pt {X}", "forward", "'times'"),
    ("raises.pt --inputs good.calls.pt", "inputs", "at most two rows, please"),
    ("raises.pt --input 'float32[2,64]'", "inputs", "rows of 128, please"),
    ("tokens.pt --input 'float32[2,128]'", "inputs"),
    ("tokens.pt --input 'int64[1,7]<99999'", "inputs", "index out of range"),
    ("tokens.pt --input 'int64[7]<500'", "inputs"),
    (f"straight.pt --inputs good.calls.pt {X}", "--input", "--inputs", "give one"),
    ("straight.pt --inputs good.calls.pt --inputs good.calls.pt", "--inputs"),
    ("straight.pt --inputs", "--inputs", "missing"),
]

METHODS = [
    (f"straight.pt --method nothing {X}", "--method 'nothing'", "forward"),
    (f"straight.pt --method '' {X}", "--method"),
    (f"straight.pt --method 'a\nb' {X}", "--method 'a b'", "forward"),
    (f"noforward.pt {X}", "forward", "--method", "encode"),
    (f"straight.pt --method forward --method forward {X}", "--method"),
]

DEVICES = [
    ("--device cuda:99", "cuda:99", "not there"),
    ("--device tpu", "--device 'tpu'", "cuda:0 or cpu"),
    ("--device ''", "--device"),
    ("--device cuda:-1", "--device 'cuda:-1'", "cuda:0 or cpu"),
    ("--device cuda:", "--device 'cuda:'", "cuda:0 or cpu"),
    ("--device cuda:9999999999", "cuda:9999999999", "cuda:0 or cpu"),
    ("--device meta", "meta", "give cuda or cpu"),
    ("--device mps", "mps", "give cuda or cpu"),
    ("--device cpu --device cpu", "--device"),
    ("--device", "--device", "missing"),
]
if not torch.cuda.is_available():
    DEVICES += [("--device cuda", "cuda", "0 CUDA devices"), ("--device cuda:0", "cuda:0", "0 CUDA devices")]

# Of plan and of run.
OPTIONS = [
    ("", "MODEL", "required"),
    ("straight.pt stack.pt", "stack.pt", "not expected"),
    (f"straight.pt {CPU} --what", "--what", "not expected"),
    (f"straight.pt {CPU} -x", "-x", "not expected"),
    (f"straight.pt {CPU} --vra 1GiB", "--vra"),
    (f"straight.pt {CPU} --format xml", "--format", "xml", "table", "json"),
    (f"straight.pt {CPU} --format ''", "--format"),
    (f"straight.pt {CPU} --format json --format json", "--format"),
    (f"straight.pt {CPU} --format", "--format", "missing"),
    (f"straight.pt {CPU} --rule best", "--rule", "best", "larger-first"),
    (f"straight.pt {CPU} --keep-devices=maybe", "--keep-devices", "maybe"),
    (f"straight.pt {CPU} --library no_such.so", "--library no_such.so", "o such file"),
    (f"straight.pt {CPU} --library ''", "--library"),
    (f"straight.pt {CPU} --library text.so", "--library text.so"),
    (f"straight.pt {CPU} --library cut.so", "--library cut.so"),
    (f"straight.pt {CPU} --library folder.pt", "--library folder.pt"),
    (f"straight.pt {CPU} --library", "--library", "missing"),
]

RUN = [
    (f"straight.pt {CPU} --calls 0", "--calls", "0", "1"),
    (f"straight.pt {CPU} --calls -1", "--calls", "-1"),
    (f"straight.pt {CPU} --calls many", "--calls", "many"),
    (f"straight.pt {CPU} --calls 99999999999999999999", "--calls", "99999999999999999999"),
    (f"straight.pt {CPU} --calls", "--calls", "missing"),
    (f"straight.pt {CPU} --threads 0", "--threads", "0", "1024"),
    (f"straight.pt {CPU} --threads=-4", "--threads", "-4"),
    (f"straight.pt {CPU} --check=perhaps", "--check", "perhaps"),
    (f"straight.pt {CPU} --machine good.json", "--machine", "not expected"),
    (f"straight.pt {CPU} --reference stack.pt", "--reference", "--check", "give both"),
    (f"straight.pt {CPU} --check --reference no_such.pt", "no_such.pt", "no such file"),
    (f"straight.pt {CPU} --check --reference state.pt", "state.pt", "state dict", *EXPORT),
    (f"straight.pt {CPU} --check --reference cut-100.pt", "cut-100.pt", "archive"),
    (f"straight.pt {CPU} --check --reference ''", "--reference"),
    (f"straight.pt {CPU} --check --reference tokens.pt", "tokens.pt"),
    (f"straight.pt {CPU} --check --reference noforward.pt", "noforward.pt", "forward"),
    (f"straight.pt {CPU} --check --reference signatures.pt", "signatures.pt", "times"),
    (f"straight.pt {CPU} --save nowhere/out.pt", "--save nowhere/out.pt", "can not be written"),
    (f"straight.pt {CPU} --save folder.pt", "--save folder.pt", "can not be written"),
    (f"straight.pt {CPU} --save file/out.pt", "--save file/out.pt", "can not be written"),
    (f"straight.pt {CPU} --save /proc/out.pt", "--save /proc/out.pt", "can not be written"),
    (f"straight.pt {CPU} --save ''", "--save"),
    (f"straight.pt {CPU} --save", "--save", "missing"),
]

BENCH = [
    ("--what", "--what", "not expected"),
    ("stack.pt", "stack.pt", "not expected"),
    ("--table 0", "--table '0'", "1 to 5"),
    ("--table 6", "--table '6'", "1 to 5"),
    ("--table one", "--table 'one'", "1 to 5"),
    ("--table 1,,2", "--table ''", "1 to 5"),
    ("--table ''", "--table"),
    ("--table 99999999999999999999", "--table '99999999999999999999'", "1 to 5"),
    ("--rows 65537", "--rows '65537'", "1 to 65536"),
    ("--rows 1,x", "--rows 'x'", "1 to 65536"),
    ("--rows ''", "--rows"),
    ("--table 1 --against tpu", "--against 'tpu'", "auto,gpu,cpu"),
    ("--table 1 --against auto,,cpu", "--against ''", "auto,gpu,cpu"),
    ("--table 1 --ring lots", "--ring", "'lots'", *SIZE),
    ("--table 1 --ring=-1", "--ring", "'-1'", *SIZE),
    ("--table 1 --format pdf", "--format", "pdf", "svg"),
    ("--table 1 --calls 0", "--calls", "0"),
    ("--table 1 --calls 1000001", "--calls", "1000001", "1000000"),
    ("--table 1 --table 2", "--table"),
    ("--table", "--table", "missing"),
    ("--profile --device cuda:99", "cuda:99", "not there"),
    ("--profile --device meta", "meta", "give cuda or cpu"),
    ("--model no_such.pt", "no_such.pt", "no such file"),
    ("--model ''", "--model"),
    ("--model state.pt", "state.pt", "state dict", *EXPORT),
    ("--model straight.pt", "straight.inputs.pt", "can not be opened"),
    ("--model garbled.pt", "garbled.inputs.pt", "torch.save"),
    ("--model stack.pt", "inputs", "129"),
    ("--model noforward.pt", "noforward.pt", "forward"),
    ("--model", "--model", "missing"),
    ("--errors", "--errors", "give --model"),
    ("--monotone", "--monotone", "give --model"),
    ("--errors --model whole.pt --table 1", "--errors", "--table", "contradicts"),
    ("--monotone --model whole.pt --profile", "--monotone", "--profile", "contradicts"),
    ("--model whole.pt --budgets 3", "--budgets", "--errors", "--monotone"),
    ("--rules", "--rules", "give --model"), ("--rules --errors --model whole.pt", "--rules", "--errors", "contradicts"),
    ("--rules --model whole.pt --format svg", "--rules", "--format svg", "contradicts"),
    ("--model whole.pt --machine rtx4090", "--machine", "--errors", "--monotone"),
    ("--errors --model whole.pt --budgets 1", "--budgets", "1", "2 to 1000"),
    ("--errors --model whole.pt --budgets many", "--budgets", "many"),
    ("--errors --model whole.pt --machine rtx9999", "--machine rtx9999", "rtx4090"),
    ("--errors --model whole.pt --machine garbage.json", "garbage.json", "JSON object"),
    ("--errors --model whole.pt --model straight.pt", "straight.inputs.pt", "can not be opened"),
    ("--errors --model whole.pt --output-dir file", "--output-dir 'file'"),
    ("--model whole.pt --output-dir file", "--output-dir 'file'"),
    ("--model whole.pt --output-dir /proc/out", "--output-dir '/proc/out'"),
    ("--model whole.pt --output-dir /proc --calls 1", "/proc", "written"),
]

MAKE_MODEL = [
    ("", "subcommand"),
    ("--what stack out.pt", "--what", "not expected"),
    ("tower out.pt", "'tower' is neither stack nor transformer"),
    ("stack", "OUT.pt", "required"),
    ("stack --layers 1 --features 8 ''", "OUT.pt"),
    ("stack --layers 1 --features 8 out.pt more.pt", "more.pt", "not expected"),
    ("stack --layers 1 --features 8 out.pt --what", "--what", "not expected"),
    ("stack --layers 1 --features 8 nowhere/out.pt", "'nowhere/out.pt'", "folder does not exist"),
    ("stack --layers 1 --features 8 file/out.pt", "'file/out.pt'", "folder"),
    ("stack --layers 1 --features 8 folder.pt", "'folder.pt'", "folder"),
    ("stack --layers 1 --features 8 /proc/out.pt", "'/proc/out.pt'", "written"),
    ("stack --layers 1 --features 8 pipe.pt", "'pipe.pt'"),
    (f"stack --layers 1 --features 8 {'long' * 100}.pt", "long", "written"),
    ("stack --layers 1 --features 8 'nowhere\n/out.pt'", "nowhere", "folder does not exist"),
    ("stack --layers 0 out.pt", "--layers", "0", "16384"),
    ("stack --layers -1 out.pt", "--layers", "-1"),
    ("stack --layers 16385 out.pt", "--layers", "16385", "16384"),
    ("stack --layers 99999999999999999999 out.pt", "--layers", "99999999999999999999"),
    ("stack --layers few out.pt", "--layers", "few"),
    ("stack --layers '' out.pt", "--layers"),
    ("stack out.pt --layers", "--layers", "missing"),
    ("stack --layers 1 --layers 2 out.pt", "--layers"),
    ("stack --features 1048577 out.pt", "--features", "1048577", "1048576"),
    ("stack --layers 16384 --features 1048576 out.pt", "memory"),
    ("stack --layers 1 --features 8 --dtype int8 out.pt", "--dtype", "'int8'", "float32"),
    ("stack --layers 1 --features 8 --dtype '' out.pt", "--dtype"),
    ("stack --layers 1 --features 8 --seed -1 out.pt", "--seed", "-1"),
    ("stack --layers 1 --features 8 --seed 99999999999999999999 out.pt", "--seed", "99999999999999999999"),
    ("stack --layers 1 --features 8 --seed x out.pt", "--seed", "x"),
    ("stack --layers 1 --features 8 --width 64 out.pt", "--width", "not expected"),
    ("stack --layers 1 --features 8 --bias=perhaps out.pt", "--bias", "perhaps"),
    ("transformer --width 0 out.pt", "--width", "0", "1048576"),
    ("transformer --width 100 --heads 3 out.pt", "width is 100", "multiple of twice the heads, 6"),
    ("transformer --heads 0 out.pt", "--heads", "0", "1048576"),
    ("transformer --hidden=-1 out.pt", "--hidden", "-1", "1048576"),
    ("transformer --vocab 0 out.pt", "--vocab", "0", "1048576"),
    ("transformer --dtype float8 out.pt", "--dtype", "'float8'", "float32"),
    ("transformer --norm batch out.pt", "--norm", "'batch'", "rms"),
    ("transformer --mlp relu out.pt", "--mlp", "'relu'", "swiglu"),
    ("transformer --size 0 out.pt", "0", "no room"),
    ("transformer --size lots out.pt", "--size", "'lots'", *SIZE),
    ("transformer --size=-1GiB out.pt", "--size", "'-1GiB'", *SIZE),
    ("transformer --size 99999999999999GiB out.pt", "--size", "99999999999999GiB", "64 bits"),
    ("transformer --size 17179869183GiB out.pt", "memory"),
    ("transformer --size 1KiB out.pt", "1024 bytes", "no room", "vocabulary"),
    ("transformer --size '' out.pt", "--size"),
    ("transformer --size 1MiB --layers 2 out.pt", "--size", "--layers", "xcludes"),
    ("transformer --size 1MiB --width 64 out.pt", "--size", "--width", "xcludes"),
    ("transformer --size 1MiB --hidden 64 out.pt", "--size", "--hidden", "xcludes"),
]

# Each stands beside cases above that are wrong in one place.
GOOD = [
    ("plan", "--help"), ("run", "--help"), ("bench", "--help"), ("make_model", "--help"), ("make_model", "stack --help"),
    ("plan", "straight.pt --device cpu"),
    ("plan", f"straight.pt {CPU} --vram {{smallest}} --format json"),
    ("plan", f"noforward.pt --device cpu --method encode {X}"),
    ("plan", "straight.pt --device cpu --input 'float32[0,128]'"),
    *(("run", f"straight.pt {CPU} --vram {{smallest}} {more}")
      for more in ("--check", "--format svg", "--rule module-order --check", "--format trace --threads 2 --check")),
    ("run", f"straight.pt {CPU} --vram 18446744073709551615 --check"),
    ("run", f"straight.pt {CPU} --vram 1GiB --host 1GiB --pinned 1MiB --library known.so"),
    ("run", "straight.pt --device cpu --inputs good.calls.pt --check --reference whole.pt --save saved.pt"),
    ("run", "signatures.pt --device cpu --inputs signatures.calls.pt --check"),
    ("run", "signatures.pt --device cpu --method joined --inputs parts.calls.pt --check"),
    ("run", "signatures.pt --device cpu --method nothing --check"),
    ("run", "tokens.pt --device cpu --input 'int64[1,7]<500' --threads 2 --calls 4"),
    ("bench", "--device cpu --model whole.pt --calls 1"),
    ("bench", "--device cpu --model whole.pt --errors --budgets 2"),
    ("make_model", "stack --layers 1 --features 8 made.pt"), ("make_model", "transformer --size 4MiB --vocab 100 too.pt"),
]


def all_cases():
    """A tool, its arguments, its status, what its line holds."""
    cases = [(tool, arguments, 0, ()) for tool, arguments in GOOD]
    for arguments, *wanted in ARCHIVES:
        cases.append(("plan", f"{arguments} --device cpu", 2, wanted))
    for arguments, *wanted in ARCHIVES[::6]:
        cases.append(("run", f"{arguments} {CPU}", 2, wanted))
    for i, (arguments, *wanted) in enumerate(BUDGETS):
        cases.append((("plan", "run")[i % 2], f"straight.pt {CPU} {arguments}", 2, wanted))
    for i, (arguments, *wanted) in enumerate(INPUTS):
        cases.append((("plan", "run")[i % 2], f"straight.pt --device cpu {arguments}", 2, wanted))
    for arguments, *wanted in CALLS:
        model, rest = (arguments + " ").split(" ", 1)
        cases.append(("run", f"{model} --device cpu {rest}", 2, wanted))
    for i, (arguments, *wanted) in enumerate(METHODS):
        cases.append((("plan", "run")[i % 2], f"{arguments} --device cpu", 2, wanted))
    for i, (arguments, *wanted) in enumerate(DEVICES):
        cases.append((("plan", "run")[i % 2], f"straight.pt {X} {arguments}", 2, wanted))
    for i, (arguments, *wanted) in enumerate(OPTIONS):
        cases.append((("plan", "run")[i % 2], arguments, 2, wanted))
    cases += [("plan", f"straight.pt {CPU} {arguments}", 0, ()) for arguments in GOOD_MACHINES]
    for arguments, *wanted in MACHINES:
        cases.append(("plan", f"straight.pt --device cpu --machine {arguments}", 2, wanted))
    cases += [("plan", f"straight.pt {CPU} {arguments}", 2, wanted) for arguments, *wanted in PLANS]
    cases += [("plan", f"straight.pt {CPU} {arguments}", 0, ()) for arguments in GOOD_PLANS]
    cases += [("run", arguments, 2, wanted) for arguments, *wanted in RUN]
    for arguments, *wanted in SERVE:
        device = "" if "--device" in arguments else "--device cpu"
        cases.append(("serve", f"{device} {arguments}", 2, wanted))
    for arguments, *wanted in BENCH:
        cases.append(("bench", arguments if "--device" in arguments else f"--device cpu {arguments}", 2, wanted))
    cases += [("make_model", arguments, 2, wanted) for arguments, *wanted in MAKE_MODEL]
    return cases
