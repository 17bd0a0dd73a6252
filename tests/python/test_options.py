"""Options, budgets, errors, and what a module says of itself."""

import pathlib
import pickle

import pytest
import torch

import torch_offload
from conftest import BUDGET, call_plain, same_bits
from torch_offload import ExampleCall


def test_a_budget_that_is_too_small_says_which_would_do(scripted_path, x):
    with pytest.raises(torch_offload.BudgetError) as refused:
        torch_offload.load(scripted_path, vram_budget="1KiB", example_calls=[(x,)])
    least = refused.value.minimum_bytes
    assert str(least) in str(refused.value)
    model = torch_offload.load(scripted_path, vram_budget=least, example_calls=[(x,)])
    assert model.placement.minimum_bytes <= least
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.minimum_bytes, str(again)) == (least, str(refused.value))


def test_errors_are_one_family():
    for error in (torch_offload.BudgetError, torch_offload.ArchiveError, torch_offload.InputError):
        assert issubclass(error, torch_offload.Error) and issubclass(error, RuntimeError)


def test_what_is_no_archive_is_said(tmp_path):
    path = tmp_path / "text.pt"
    path.write_text("no archive")
    for given in (path, str(path), tmp_path / "none.pt"):
        with pytest.raises(torch_offload.ArchiveError, match=pathlib.Path(given).name):
            torch_offload.load(given)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"vram": 1}, TypeError, "no option 'vram': there are pool"),
        ({"vram_budget": "8 apples"}, torch_offload.InputError, "vram_budget: '8 apples'"),
        ({"vram_budget": -1}, torch_offload.InputError, "vram_budget: -1"),
        ({"vram_budget": 2**70}, torch_offload.InputError, "vram_budget"),
        ({"host_budget": 1.5}, TypeError, "host_budget: an int, or a str"),
        ({"pinned_budget": True}, TypeError, "pinned_budget"),
        ({"device": "tpu:0"}, torch_offload.InputError, "device: 'tpu:0'"),
        ({"device": "cuda:17"}, torch_offload.InputError, "cuda:17"),
        ({"concurrency": "2"}, TypeError, "concurrency: an int"),
        ({"concurrency": 65}, torch_offload.InputError, "concurrency"),
        ({"concurrency": 2**40}, torch_offload.InputError, "concurrency"),
        ({"pool": 3}, TypeError, "pool: a Pool"),
        ({"weight": "1"}, TypeError, "weight: a number"),
        ({"gradients": "on"}, torch_offload.InputError, "'on' is not one of 'off', 'callers'"),
        ({"numerics": "lossy"}, torch_offload.InputError, "exact"),
        ({"map_file": 1}, TypeError, "map_file: True or False"),
        ({"progress": 1}, TypeError, "progress: a function"),
        ({"example_calls": [3]}, TypeError, r"write \(x,\)"),
        ({"example_calls": [(3,)]}, torch_offload.InputError, r"example_calls\[0\].*'x'"),
        ({"example_calls": [ExampleCall(method="sing")]}, torch_offload.InputError, "'sing': it has forward"),
    ],
)
def test_options_that_are_wrong_are_named(scripted_path, options, error, message):
    with pytest.raises(error, match=message):
        torch_offload.load(scripted_path, **options)


def test_options_may_be_none(scripted_path, x):
    names = torch_offload.Options.__annotations__
    torch_offload.load(scripted_path, **dict.fromkeys(names))(x)


def test_example_calls_are_made_at_load(scripted_path, plain, x):
    calls = [(x,), [x, 2.0], ((x,), {"times": 2}), ExampleCall(([x, x], {}), method="describe")]
    model = torch_offload.load(scripted_path, vram_budget=BUDGET, example_calls=calls)
    assert model.stats.calls == 4
    assert same_bits(model(x), call_plain(plain, x))


def test_a_budget_changes_between_calls(model, plain, x):
    for budget in ("64MiB", 2**20, "700KiB"):
        model.set_vram_budget(budget)
        assert same_bits(model(x), call_plain(plain, x))
        assert model.placement.to_dict()["budget"]["vram"] == torch_offload._C.parse_bytes(budget)
    model.release()
    assert model.stats.bytes_resident < 2**19
    assert same_bits(model(x), call_plain(plain, x))
    with pytest.raises(torch_offload.BudgetError):
        model.set_vram_budget(1)
    with pytest.raises(TypeError):
        model.set_vram_budget(None)


def test_a_placement_prints_as_a_table_a_dict_and_a_picture(model, x):
    model(x)
    placement = model.placement
    assert "layers.*.weight" in str(placement)
    assert {weight["name"] for weight in placement.to_dict()["weights"]} == {f"layers.{i}.weight" for i in range(8)}
    svg = placement.to_svg()
    assert svg.startswith("<svg") and "layers.7.weight" in svg and "compute" in svg
    html = placement._repr_html_()
    assert svg in html and "<pre>Placement on" in html and html.count("<svg") == 1


def test_reports_and_statistics_are_objects_and_dicts(model, x):
    for _ in range(4):
        model(x)
    stats, report = model.stats, model.report()
    assert stats.calls == stats.to_dict()["calls"] == 4 and "calls 4" in str(stats)
    assert report.to_dict()["since"].keys() == stats.to_dict().keys()
    assert report.calls_in_pass == 1 and report.bound in ("compute", "launches", "link", "disk", "neither")
    assert "A call took" in str(report)


def test_modules_share_a_pool(scripted_path, plain, x):
    pool = torch_offload.Pool(vram_budget="4MiB")
    models = [torch_offload.load(scripted_path, pool=pool, weight=i + 1) for i in range(3)]
    expected = call_plain(plain, x)
    for _ in range(3):
        assert all(same_bits(model(x), expected) for model in models)
    assert [entry.name for entry in pool.entries()] == ["layers.pt"] * 3
    assert [entry.calls for entry in pool.entries()] == [3] * 3
    assert pool.vram_budget == 4 * 2**20 and pool.device == models[0].device
    assert pool.stats.calls == 9
    pool.set_vram_budget("3MiB")
    assert pool.vram_budget == 3 * 2**20
    last = models.pop()
    del models, pool  # it lives for as long as a module of it
    assert same_bits(last(x), expected)
    with pytest.raises(TypeError, match="no option 'vram'"):
        torch_offload.Pool(vram=3)


def test_priorities_are_scopes(model, x):
    with torch_offload.priority("high"), torch_offload.priority("low"):
        model(x)
    with pytest.raises(torch_offload.InputError, match="'urgent'"):
        torch_offload.priority("urgent")
    scope = torch_offload.priority("low")
    with scope, pytest.raises(torch_offload.Error, match="has begun already"):
        scope.__enter__()
