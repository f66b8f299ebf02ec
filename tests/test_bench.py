"""What the benches count, choose, refuse and draw. The times that they measure are not tested."""

import dataclasses
import functools
import io
import json
import re
from math import nan
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlc import batches, costs, losses, train
from dlc.errors import UserError
from dlc.models.convnet import Convnet
from dlc.models.mlp import MLP
from dlc.models.squeezenet import squeezenet1_1
from dlc.models.table import TABLE
from dlc.run import bench, by_batch, ceilings, flags, plan, record, timing
from dlc.run.fit import Plan, fit, start
from dlc.run.run import Run
from experiments.bench import _charts, classics, compute, devices, forward, milestones, train_step
from experiments.mnist import mlp

# Counting operations


def test_every_round_of_a_loop_is_counted():
    square = jnp.ones((64, 64))

    def loop(rounds):
        return lambda x: jax.lax.scan(lambda x, _: (x @ square, None), x, None, length=rounds)[0]

    def nested(x):
        return jax.jit(loop(10))(jax.lax.scan(lambda x, _: (loop(4)(x), None), x, None, length=3)[0])

    assert costs.flops(nested, square) == pytest.approx(22 * 2 * 64**3, rel=1e-3)


def test_a_step_of_training_is_three_times_its_forward_pass_but_for_the_first_layer():
    model, tx = Convnet(), optax.sgd(0.1)
    batch = {"image": jnp.zeros((100, 28, 28, 1)), "label": jnp.zeros(100, jnp.int32)}
    params = jax.eval_shape(model.init, jax.random.key(0), batch["image"])["params"]
    state = jax.eval_shape(lambda params, key: train.init(params, tx, key), params, jax.random.key(0))
    forward = costs.macs(lambda params, image: model.apply({"params": params}, image), params, batch["image"])
    first = 100 * 24 * 24 * 5 * 5 * 32  # the gradient with respect to the image is not computed
    step = train.make_step(losses.classify(model), tx)
    assert costs.flops(step, state, batch) == pytest.approx(2 * (3 * forward - first), rel=0.02)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_counts_the_operations_of_its_training(seeds):
    model, tx = MLP((32,)), optax.sgd(0.1)
    arrays = {"image": jnp.ones((40, 8, 8, 1)), "label": jnp.zeros(40, jnp.int32)}

    def init(key):
        return train.init(model.init(key, arrays["image"])["params"], tx, key)

    here = Run()
    step = train.on_device(train.make_step(losses.classify(model), tx), arrays)
    again = here.part("again")
    again.clock.programs = here.clock.programs
    for part in (here, again):
        state = start(part, init, train.seed_keys(0, seeds))
        fit(part, state, step, batches.minibatches(40, 20), Plan(5, report_every=2, seeds=seeds))
    result = record.finish(here, "mnist.mlp", "none", compute.Config(), {}, "")
    forward = 20 * (64 * 32 + 32 * 10)
    assert result["train_flops"] == pytest.approx(2 * 5 * seeds * 2 * (3 * forward - 20 * 64 * 32), rel=0.1)
    assert record.finish(Run(), "cifar10.peek", "none", compute.Config(), {}, "")["train_flops"] is None


# The chart of training compute


def test_every_milestone_has_a_source():
    sources = re.findall(r"^    \[(\d)\]", milestones.__doc__, re.MULTILINE)
    assert {str(source) for *_, source in milestones.MILESTONES} == set(sources)
    years = [year for year, *_ in milestones.MILESTONES]
    assert years == sorted(years)
    assert years[0] == 1958
    assert len(years) >= 12
    known = {name: flops / milestones.DAY for _, name, flops, _ in milestones.MILESTONES}
    assert known["AlexNet"] == pytest.approx(0.0054, rel=0.01)
    assert known["GPT-3"] == pytest.approx(3640, rel=0.01)
    assert known["AlphaGo Zero"] == pytest.approx(300_000 * 0.0058, rel=0.01)


def written(folder, name, **changes):
    origin = {"date": "2026-01-01", "device": {"platform": "cpu"}}
    result = {"experiment": name, "seconds": {"train": 3600.0}, "config": {}, **origin, **changes}
    (folder / f"{name}.cpu.json").write_text(json.dumps(result))
    return result


def test_the_chart_has_what_the_records_say(tmp_path, capsys):
    written(tmp_path, "mnist.convnet", train_flops=8.64e19)
    written(tmp_path, "mnist.mlp")
    written(tmp_path, "cifar10.peek", seconds={"train": 0.0})
    (found,) = compute.measured(compute.Config(results=tmp_path, cpu_watts=100, price=0.5))
    rows = found.rows
    assert len(rows) == len(milestones.MILESTONES) + 1
    ours = rows["`mnist.convnet`"]
    assert (ours["petaflop/s-days"], ours["kWh"], ours["price"]) == ("1", "0.1", "0.05")
    assert list(rows).index("*Deep Speech 2*") < list(rows).index("`mnist.convnet`") < list(rows).index("*BERT-large*")
    assert "no count in the records of mnist.mlp: add --count to trace them" in capsys.readouterr().err
    (axis,) = found.figures["compute"].axes
    assert axis.get_yscale() == "log"
    assert {text.get_text() for text in axis.texts} == {
        "mnist.convnet",
        *(name for _, name, *_ in milestones.MILESTONES),
    }


def test_an_older_record_is_counted_by_tracing_its_experiment(tmp_path):
    config = {**vars(mlp.SMOKE), "hidden": [], "seeds": 2}
    given = {"experiment": "mnist.mlp", "config": config}
    flops = compute.traced(given)
    steps = mlp.SMOKE.epochs * (1437 // mlp.SMOKE.batch)
    assert flops == pytest.approx(2 * steps * mlp.SMOKE.batch * 784 * 10 * 2 * 2, rel=0.2)
    with pytest.raises(UserError, match="configuration is from another version"):
        compute.traced({**given, "config": {**config, "flag": 1}})
    with pytest.raises(UserError, match=r"there is no experiments\.mnist\.linear: it may have another name now"):
        compute.traced({**given, "experiment": "mnist.linear"})
    with pytest.raises(UserError, match="which only the run itself can count"):
        plan.operations(lambda config, run: fit(run.part("a"), {}, lambda s, b: (s, {}), None, Plan(1)), None)
    with pytest.raises(UserError, match="only the run itself can count"):
        plan.operations(lambda config, run: None, None)


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no record of an experiment: run one"):
        list(compute.measured(compute.Config(results=tmp_path)))


# The machine's ceilings


def test_ceilings_are_measured_for_every_precision(monkeypatch):
    monkeypatch.setattr(ceilings, "CHUNK", 0.001)
    monkeypatch.setattr(ceilings, "NUMBERS", {"cpu": 2**10})
    (result,) = devices.measured(devices.Config(sizes=(32, 64), rounds=2))
    assert list(result.rows) == ["matrix product, float32", "matrix product, bfloat16", "copy"]
    assert set(result.more["ceilings"]) == {"float32", "bfloat16", "copy"}
    assert min(result.more["ceilings"].values()) > 0
    np.testing.assert_allclose(ceilings.product(8, "float32")(0).shape, (8, 8))
    monkeypatch.setattr(ceilings, "LIMIT", 0.0)
    with pytest.raises(UserError, match=r"one product of 32x32 takes over 0 s: choose smaller --sizes"):
        ceilings.ceilings((32, 64))
    with pytest.raises(UserError, match=r"--sizes must be greater than 0, not 0"):
        flags.check(devices.Config(sizes=(0,)))


def test_a_share_is_of_the_ceiling(monkeypatch):
    monkeypatch.setattr(ceilings, "ceiling", {"float32": 2e9, "bfloat16": 8e9}.get)
    assert ceilings.share(1e9, 1.0) == 0.5
    assert ceilings.share(1e9, 0.5, "bfloat16") == 0.25


# The classics


def test_every_family_of_imagenet_is_timed():
    timed = {type(classic.make()).__module__.rpartition(".")[2] for classic in classics.CLASSICS.values()}
    for_imagenet = {row.module.rpartition(".")[2] for row in TABLE if row.inputs[0][0] >= 224}
    assert timed == for_imagenet
    assert all(50 < classic.top1 < 85 for classic in classics.CLASSICS.values() if classic.top1)
    with pytest.raises(UserError, match="--models cannot be lenet: choose from alexnet "):
        flags.check(forward.Config(models=("lenet",)))
    for module in (forward, train_step):
        with pytest.raises(UserError, match="--batches must be greater than 0, not 0"):
            flags.check(module.Config(batches=(0,)))
    with pytest.raises(UserError, match="--batches needs at least one value"):
        flags.check(forward.Config(batches=()))


def test_a_compiler_is_timed_on_a_gpu_and_only_beside_a_peer():
    assert classics.forms(forward.FORMS, ("nin", "resnet18")) == {
        "nin": ["dlc"],
        "resnet18": ["dlc", "PyTorch, channels_last", "PyTorch, eager"],
    }


def classic(make, side):
    return classics.CLASSICS["alexnet"]._replace(make=make, inputs=((side, side, 3),))


SMALL = classic(squeezenet1_1, 32)


def test_random_variables_are_those_of_the_model_and_keep_activations_alive():
    model = squeezenet1_1()
    drawn, one = classics.variables(model, 32), classics.images(1, 32)
    equal = jax.tree.map(lambda a, b: a.shape == b.shape, drawn, jax.eval_shape(model.init, jax.random.key(0), one))
    assert all(jax.tree.leaves(equal))
    assert 1e-3 < float(jnp.std(jax.jit(model.apply)(drawn, one))) < 1e3


@pytest.mark.parametrize("module", [forward, train_step])
def test_our_form_answers(module, monkeypatch):
    monkeypatch.setattr(by_batch, "CHUNK", 0.0)
    monkeypatch.setitem(classics.CLASSICS, "tiny", classic(functools.partial(MLP, (8,), 1000), 8))
    answer = module.ours("tiny", "float32")
    assert answer("time", "2") > 0
    assert answer("compile", "2") > 0
    assert answer("programs", "2") == 1
    assert answer("memory") > 1e6


def test_costs_stand_in_the_table(monkeypatch):
    monkeypatch.setattr(ceilings, "ceiling", {"float32": 1e11}.get)
    cost = forward.cost(SMALL)
    assert cost["parameters"] == 1_235_496
    assert cost["flops"] == pytest.approx(2 * cost["macs"], rel=0.3)  # these include the padding
    times = {
        "dlc": {1: np.array([0.002]), 4: np.array([0.006])},
        "PyTorch, eager": {1: np.array([0.001]), 4: np.array([0.012])},
        "PyTorch, channels_last": {1: np.array([0.002]), 4: np.array([0.008])},
    }
    memory = {"dlc": 2.0**20, "PyTorch, eager": 3 * 2.0**20, "PyTorch, channels_last": 4 * 2.0**20}
    found = by_batch.Measured(times, memory, [])
    row = forward.row(SMALL, cost, found, "float32")
    assert row["ms an image"] == "2 at 1, 1.5 at 4"
    assert row["of PyTorch's best"] == "1.38 (0.75 to 2.00)"
    assert (row["peak MiB"], row["PyTorch's"]) == ("1", "3")
    assert by_batch.median_ratio({"a": found}).endswith("it is 1.38, the median over the models; the worst is a, 1.38.")
    alone = by_batch.Measured({"dlc": times["dlc"]}, {"dlc": 1.0}, [])
    assert forward.row(SMALL, cost, alone, "float32")["of PyTorch's best"] == ""
    assert by_batch.median_ratio({"a": alone}) == "None of these networks has a peer."


class Sleepless:
    """A worker that reports 0.1 s for each image."""

    def __init__(self, module, form, name, *words):
        self.dies = name == "vgg16"

    def measure(self, what, batch=0):
        if self.dies:
            raise UserError("no memory")
        return {"time": 0.1 * batch, "memory": 7.0}[what]

    def close(self):
        pass


def test_batches_and_models_that_take_too_long_or_fail_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(timing, "Worker", Sleepless)
    models = {name: ["dlc", "PyTorch, eager"] for name in ("resnet18", "vgg16", "resnet50")}

    def measured(minutes):
        limits = by_batch.Limits(batches=(1, 4, 8), rounds=2, limit=0.5, minutes=minutes)
        return by_batch.table("m", models, (), limits, lambda name, found: {f"{name}!": {"ms": "1", "empty": ""}})

    rows, found = measured(minutes=1)
    assert list(rows) == ["resnet18!", "resnet50!"]
    assert list(found) == ["resnet18", "resnet50"]
    assert found["resnet18"].batches == [1, 4]
    assert found["resnet18"].skipped == [8]
    printed = capsys.readouterr()
    assert printed.out == "resnet18!: ms 1\nresnet50!: ms 1\n"
    assert "resnet18: no batches of 8, over 0.5 s" in printed.err
    assert "vgg16 is left out: no memory" in printed.err
    with pytest.raises(UserError, match="no model could be timed"):
        measured(minutes=-1)
    assert "resnet50 is left out: -1 minutes are over" in capsys.readouterr().err


# Compiling


def test_a_form_says_what_it_compiled():
    """A chunk of steps is one program; the first chunk takes what later ones take and the time to compile."""
    step = jax.jit(lambda x: jnp.sin(x) * 3)
    answer = timing.chunks(lambda x, at: step(x).block_until_ready(), jnp.ones(7), chunk=5)
    assert answer("programs") == 1
    assert answer("compile") > answer("time")
    assert answer() > 0


class Compiler:
    """A worker that compiles three programs in 5 s, or reads them in 1 s."""

    made: list[tuple[str, ...]]

    def __init__(self, module, *words, caches):
        self.caches, self.words = Path(caches), words
        self.made.append(words)

    def measure(self, what, *of):
        assert of == (4,)
        warm = (self.caches / "program").exists()
        (self.caches / "program").touch()
        return {"compile": 1.0 if warm else 5.0, "programs": 3.0}[what]

    def close(self):
        pass


def test_compiling_is_timed_without_a_cache_and_with_one(monkeypatch):
    monkeypatch.setattr(timing, "Worker", Compiler)
    monkeypatch.setattr(Compiler, "made", [], raising=False)
    forms = ["dlc", "PyTorch, eager", "PyTorch, compiled", "PyTorch, channels_last"]
    found = timing.compiling("m", forms, ("part",), 4)
    assert found == {name: timing.Compiling(5.0, 1.0, 3) for name in ("dlc", "PyTorch, compiled")}
    assert Compiler.made == [("dlc", "part")] * 2 + [("PyTorch, compiled", "part")] * 2
    times = {"dlc": np.array([0.001, 0.003]), "PyTorch, eager": np.array([0.001])}
    rows = bench.step_rows(times, "PyTorch, eager", found)
    assert rows["dlc"]["of PyTorch's best"] == "2.00"
    assert (rows["dlc"]["s to compile"], rows["dlc"]["with a warm cache"], rows["dlc"]["programs"]) == (
        "5.0",
        "1.0",
        "3",
    )
    assert (rows["PyTorch, eager"].keys(), rows["PyTorch, eager"]["s to compile"]) == (rows["dlc"].keys(), "")


# From flags to a record


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags of a bench of this file."""

    rounds: flags.Positive[int] = 1
    out: Path = Path("runs")


def measured(config):
    yield bench.Bench("here", "Here", "how", {"a": {"ms": config.rounds}})
    yield bench.Bench("here.part", "Part", "how", {"a": {"ms": "2"}}, ["--part", "b"], {"more": 3})


def launched(*argv, **options):
    bench.launch(measured, Config, argv=list(map(str, argv)), **options)


def test_a_bench_is_launched_and_saves_each_part(tmp_path, capsys):
    launched("--rounds", 5, "--out", tmp_path)
    records = [
        json.loads(next(tmp_path.glob(f"bench.{name}/*/result.json")).read_text()) for name in ("here", "here.part")
    ]
    assert [one["command"] for one in records] == [
        "python -m experiments.bench.here --rounds 5",
        "python -m experiments.bench.here --part b",
    ]
    assert records[0]["rows"] == {"a": {"ms": 5}}
    assert records[1]["more"] == 3
    assert "| a | 5 |" in capsys.readouterr().out


def test_mistakes_and_missing_peers_are_one_sentence(tmp_path, capsys):
    for words, sentence in (
        (("--rounds", 0), "error: --rounds must be greater than 0, not 0\n"),
        ((), "error: no_such_peer is not installed: make .venv/.peers installs it\n"),
    ):
        with pytest.raises(SystemExit) as stopped:
            launched(*words, "--out", tmp_path, peers=() if words else ("json", "no_such_peer"))
        assert (stopped.value.code, capsys.readouterr().err) == (2, sentence)
    assert not list(tmp_path.iterdir())


def test_a_worker_is_given_its_words(monkeypatch, capsys):
    """Its form's arguments keep their types; a line's words are those of one measurement."""
    forms = {"a form": lambda part, size: lambda *words: float(len(words) + size if part == "steps" else nan)}
    monkeypatch.setattr("sys.stdin", io.StringIO("\ntime 8\n"))
    launched("--worker", json.dumps(["a form", "steps", 3]), forms=forms)
    assert capsys.readouterr().out == "3.0\n5.0\n"


def test_flags_are_what_differs_from_the_defaults(tmp_path):
    assert bench.given(forward.Config(out=tmp_path)) == []
    config = forward.Config(models=("enet", "nin"), dtype="float32", limit=1.5)
    assert bench.given(config) == ["--models", "enet", "nin", "--dtype", "float32", "--limit", 1.5]
    assert bench.given(compute.Config(count=True)) == ["--count"]
    assert [bench.three(value) for value in (0.01234, 12.345, 123.45, 12345.6)] == ["0.0123", "12.3", "123", "12,346"]


# Records and figures


def test_a_bench_saves_its_figures(tmp_path):
    figures = {
        "batches": _charts.time_per_image({"a": {1: 0.1, 8: 0.05}, "b": {1: 0.2}}),
        "bubbles": _charts.accuracy_against_operations({"a": (1.0, 70.0, 5_000_000)}),
        "compute": _charts.compute({"AlexNet": (2012, 0.0054)}, {}),
    }
    bench.save(tmp_path, bench.Bench("forward", "", "", {"a": {"ms": "1"}}, figures=figures), [])
    (path,) = tmp_path.glob("bench.forward/*/result.json")
    assert json.loads(path.read_text())["command"] == "python -m experiments.bench.forward"
    assert {p.stem for p in (path.parent / "figures").iterdir()} == {"batches", "bubbles", "compute"}
