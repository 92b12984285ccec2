"""Members of an ensemble against single runs: the same to rounding, whatever they differ in."""

import array_api_strict
import numpy as np
import pytest
import xarray

from linfb import rules
from linfb._errors import DivergenceError, InterruptedRun
from linfb._threads import threads
from linfb.datasets import RandomFlip, load_dataset
from linfb.engine import (
    Member,
    Optimizers,
    adam,
    amsgrad,
    cross_entropy,
    decoder,
    grid,
    mlp,
    muon,
    rmsprop,
    sgd,
    train,
    train_ensemble,
    vgg_like,
)
from linfb.engine.ensembles import _checked
from linfb.engine.fusing import BiasReLU, NormReLU, fused
from linfb.engine.layers import BatchNorm, Bias, ReLU
from linfb.engine.layers.runs import side_by_side
from linfb.engine.models import forward, initial_weights
from linfb.engine.optimisers import clipped
from linfb.engine.trees import flatten
from linfb.kernels import cpu_norms, cpu_optimisers, reference_losses, reference_norms, reference_optimisers
from linfb.rules import mirrors, readers
from tests.test_engine_training import DATA, MODEL, Stop, StopAfter

OJA = readers.Oja(on="labels", covariance="normalised")
RULES = {
    "full": [rules.backpropagation(), rules.feedback_alignment(gain="full_rank"), rules.zero_feedback()],
    "low-rank": [rules.low_rank(2, gain="full_rank"), rules.low_rank(2, reader=OJA), rules.local(2)],
    "direct": [rules.direct_feedback_alignment(), rules.direct_low_rank(2), rules.low_rank(2, source="hidden")],
    "drawing": [
        rules.sign_symmetry(magnitude="random"), rules.weight_mirror(mirror=mirrors.WeightMirror(probes=3)),
        rules.low_rank(2, mirror=mirrors.Sign("random")),
    ],
    "others": [
        rules.low_rank(2, reader=readers.SimilarityMatching()), rules.normative(2, restart_every=5),
        rules.low_rank(2, layers=(2,)), rules.kolen_pollack(),
    ],
}  # fmt: skip


def weights(view):
    """One number per layer to which all its weights contribute."""
    return np.array([np.sum(kernel * np.cos(np.arange(kernel.size)).reshape(kernel.shape)) for kernel in view.kernels])


SETTINGS = {"epochs": 3, "batch_size": 16, "progress": False, "dtype": "float64", "observe": {"kernels": weights}}


def alone(member, data=DATA, model=MODEL, **changes):
    return train(data, model, member.rule, optimizer=member.optimizer, seed=member.seed, **SETTINGS | changes)


def together(members, data=DATA, model=MODEL, **changes):
    return train_ensemble(data, model, members, **SETTINGS | changes)


def gap(run, single):
    """Return the largest difference of any variable, relative to its largest entry; infinite if NaNs differ."""
    gaps = []
    for name in set(single.data_vars) - {"error"}:
        a, b = run[name].values.astype(float), single[name].values.astype(float)
        if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
            return np.inf
        gaps.append(np.nanmax(np.abs(a - b), initial=0) / max(1.0, np.nanmax(np.abs(b), initial=0)))
    return max(gaps)


ROUNDING = 1e-10
"""Differences of 1e-16 in every step, which optimisers that divide by the gradient amplify, over up to 18 steps."""


@pytest.mark.parametrize("kind", RULES)
def test_members_are_their_single_runs_whatever_the_rule(kind):
    fast, slow = amsgrad(1e-2, weight_decay=1e-3), amsgrad(3e-3)
    members = [
        *grid(RULES[kind], fast, ranks=(2,)), *grid(RULES[kind], fast, ranks=(1,), seeds=1),
        *grid(RULES[kind], slow, ranks=(2,)),
    ]  # fmt: skip
    runs, singles = together(members, epochs=2), [alone(member, epochs=2) for member in members]
    assert max(gap(runs.isel(run=r), single) for r, single in enumerate(singles)) < ROUNDING
    assert runs.seed.values.tolist() == [member.seed for member in members]
    assert np.all(runs.error == "")
    # another seed, rate or rank is another run
    for r in range(1, len(members)):
        assert gap(runs.isel(run=r), singles[0]) > 1e-4


@pytest.mark.parametrize(
    "optimizers",
    [
        [sgd(0.1, momentum=0.9, nesterov=True), sgd(0.03, momentum=0.9, nesterov=True, weight_decay=0.1)],
        [rmsprop(1e-2, centred=True, momentum=0.5), rmsprop(3e-3, centred=True, momentum=0.5)],
        [Optimizers(adam(rate), Q=sgd(0.1), P=sgd(20 * rate), clip_norm=0.1) for rate in (1e-2, 1e-3)],
    ],
)  # fmt: skip
def test_members_are_their_single_runs_whatever_the_optimiser(optimizers):
    members = grid(rules.low_rank(2), optimizers, seeds=(0, 1), ranks=(1, 2))
    runs, singles = together(members), [alone(member) for member in members]
    assert max(gap(runs.isel(run=r), single) for r, single in enumerate(singles)) < ROUNDING
    assert gap(runs.isel(run=2), singles[0]) > 1e-4


def test_muon_sees_the_shape_that_a_matrix_has_alone():
    members = grid(rules.low_rank(2), [muon(1e-2), muon(3e-2)], ranks=(1, 2))
    runs, singles = together(members, epochs=1), [alone(member, epochs=1) for member in members]
    # steps of Muon bring out singular values of the size of rounding errors, 485 times in each
    assert max(gap(runs.isel(run=r), single) for r, single in enumerate(singles)) < 1e-8
    assert gap(runs.isel(run=1), singles[0]) > 1e-4


class Own:
    """An optimiser that the package does not know."""

    learning_rate, weight_decay = 0.1, 0.0

    def init(self, value):
        return ()

    def update(self, value, gradient, slots, *, step, factor=1.0, kernels=None):
        return value - self.learning_rate * factor * gradient, ()


def test_what_cannot_be_joined_trains_alone_with_the_same_bits():
    members = [Member(rules.backpropagation(), Own()), Member(rules.kolen_pollack(), adam(1e-2), 5)]
    members = [Member(rules.backpropagation(), Optimizers(Own(), Q=Own(), P=Own())), members[1]]
    runs = together(members)
    for r, member in enumerate(members):
        assert gap(runs.isel(run=r), alone(member)) == 0


def test_images_with_convolutions_dropout_and_augmentation():
    digits = load_dataset("digits").splits(train=160, validation=64, layout="image", dtype="float64")
    model = vgg_like((8, 8, 1), 10, widths=(4, 6), dense=8, dropout=0.3)
    members = grid([rules.low_rank(2), rules.backpropagation()], amsgrad(3e-3), seeds=(0, 1), ranks=(1, 2))
    changes = {"model": model, "epochs": 1, "batch_size": 32, "augment": (RandomFlip(),)}
    runs, singles = together(members, digits, **changes), [alone(one, digits, **changes) for one in members]
    assert max(gap(runs.isel(run=r), single) for r, single in enumerate(singles)) < ROUNDING
    assert gap(runs.isel(run=1), singles[0]) > 1e-4
    without = together(members[:2], digits, **changes | {"augment": ()})
    assert gap(without.isel(run=0), singles[0]) > 1e-4


def test_sequences_of_tokens():
    from linfb.datasets import Text

    text = Text.from_string("abcd efgh abba cafe dada " * 40, length=8)
    model = decoder(8, text.n_classes, width=8, depth=1, heads=2, dropout=0.1)
    members = grid([rules.low_rank(2), rules.direct_low_rank(2)], adam(1e-2), seeds=(0, 1), ranks=(1, 3))
    changes = {"model": model, "epochs": 1, "batch_size": 8, "observe": ("alignment", "captured_energy")}
    runs, singles = together(members, text, **changes), [alone(one, text, **changes) for one in members]
    assert max(gap(runs.isel(run=r), single) for r, single in enumerate(singles)) < ROUNDING
    assert gap(runs.isel(run=1), singles[0]) > 1e-4


def test_every_observable_is_that_of_the_member():
    names = ("alignment", "captured_energy", "subspace_distance", "update_rank", "mirror_alignment", "mirror_stability")
    members = grid(rules.low_rank(2, gain="full_rank"), adam(1e-2), seeds=(0, 1), ranks=(1, 2))
    runs, singles = together(members, observe=names), [alone(member, observe=names) for member in members]
    tolerance = 1e-8  # eigenvalues of small matrices
    assert max(gap(runs.isel(run=r), single) for r, single in enumerate(singles)) < tolerance
    for r in range(1, len(members)):  # each of them is another one at another seed or rank
        for name in names:
            assert gap(runs[[name]].isel(run=r), singles[0][[name]]) > 1e4 * tolerance, name


def test_chunks_change_nothing_but_the_memory_and_threads_nothing_at_all():
    members = grid([rules.low_rank(2), rules.backpropagation()], adam(1e-2), seeds=range(3), ranks=(1, 2))
    whole, chunked = together(members, threads=1), together(members, chunk=2, threads=1)
    assert gap(chunked, whole) < ROUNDING
    xarray.testing.assert_identical(together(members, threads=3), whole)


def test_the_strict_array_api_gives_the_same():
    members = grid(rules.low_rank(2, reader=OJA), sgd(0.1, momentum=0.9), seeds=(0, 1), ranks=(1, 2))
    plain, strict = together(members, epochs=1), together(members, device=array_api_strict, epochs=1)
    assert gap(strict, plain) < 1e-9
    for r in range(1, len(members)):  # another seed or rank
        assert gap(strict.isel(run=r), plain.isel(run=0)) > 1e-4


DIVERGING = [Member(rules.low_rank(1), sgd(rate), seed) for rate, seed in ((0.1, 0), (1e200, 0), (0.1, 1))]


def test_a_member_that_diverges_says_so_and_the_others_go_on():
    runs = together(DIVERGING)
    assert runs.error.values[[0, 2]].tolist() == ["", ""]
    for r in (0, 2):
        assert gap(runs.isel(run=r), alone(DIVERGING[r])) < ROUNDING
    with pytest.raises(DivergenceError) as caught:  # which is what would end all of them if they shared its fate
        alone(DIVERGING[1])
    assert runs.error.values[1] == str(caught.value)
    assert np.isnan(runs.isel(run=1).validation_loss).all()
    assert np.isnan(runs.isel(run=1).test_loss).all()
    assert runs.chosen_epoch.values[1] == -1


def test_all_members_may_diverge():
    runs = together([DIVERGING[1], DIVERGING[1]])
    assert np.all(runs.error != "")
    assert runs.sizes["epoch"] == 0


@pytest.mark.parametrize("stop", [0.7, 1.5])
def test_an_interrupted_ensemble_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path, stop):
    members = [*DIVERGING, Member(rules.low_rank(2), sgd(0.1), 3), Member(rules.backpropagation(), sgd(0.1))]
    whole = together(members, schedule=StopAfter(99))
    with pytest.raises(InterruptedRun) as caught:
        together(members, schedule=StopAfter(stop), checkpoint=tmp_path, checkpoint_seconds=0.0)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.partial.sizes["run"] == 5
    assert np.isnan(caught.value.partial.train_loss.values[-1]).all()
    xarray.testing.assert_identical(together(members, schedule=StopAfter(99), checkpoint=tmp_path), whole)
    with pytest.raises(ValueError, match="seed differ; seed was 0, is 7"):
        together([Member(rules.low_rank(1), sgd(0.1), 7), *members[1:]], schedule=StopAfter(99), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="holds 4 runs, not 2"):
        together(members[:2], schedule=StopAfter(99), checkpoint=tmp_path)


def test_an_interrupt_before_the_first_epoch_leaves_nothing():
    with pytest.raises(InterruptedRun) as caught:
        together(DIVERGING, schedule=Stop(0))
    assert caught.value.partial.sizes["epoch"] == 0


@pytest.mark.parametrize(
    ("members", "changes", "message"),
    [
        ([], {}, "members must be a sequence of at least one"),
        ([Member(rules.backpropagation(), sgd(0.1))], {"chunk": 0}, "chunk"),
        ([Member(rules.backpropagation(), sgd(0.1))], {"epochs": 0}, "epochs"),
        ([Member(rules.backpropagation(), sgd(0.1))], {"loss": "hinge"}, "loss"),
    ],
)
def test_bad_arguments_are_refused_by_name(members, changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        together(members, **changes)


@pytest.mark.parametrize("members", ["bp", 3, [rules.backpropagation()]])
def test_what_are_no_members_is_refused(members):
    with pytest.raises((TypeError, ValueError), match=r"members must .*linfb\.engine\.Member"):
        _checked(members)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("bp", sgd(0.1)), "rule must be"), ((rules.backpropagation(), "sgd"), "optimizer for W"),
     ((rules.backpropagation(), sgd(0.1), -1), "seed")],
)  # fmt: skip
def test_members_say_what_they_lack(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Member(*arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 7, 5), (4, 6, 2, 3)])
def test_kernels_on_runs_are_the_reference_on_each(dtype, shape):
    rng = np.random.default_rng(0)
    x, delta = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gain, shift = (rng.standard_normal((shape[0], shape[-1])).astype(dtype) for _ in range(2))
    calls = {
        "shifted": (x, gain), "feature_sums": (delta, 1), "feature_variances": (x, 1), "norm_grad": (delta, x, 1),
        "batch_norm": (x, gain, shift, 1e-5), "layer_norm": (x, gain, shift, 1e-5),
        "batch_norm_grad_pull": (delta, x, shift, gain), "layer_norm_pull": (delta, x, x[..., :1], gain),
    }  # fmt: skip
    for name, arguments in calls.items():
        with threads(2):
            found = getattr(cpu_norms, name)(*arguments)
        plain = getattr(reference_norms, name)
        own = [[a[r] for a in arguments if isinstance(a, np.ndarray)] for r in range(shape[0])]
        numbers = [a for a in arguments if isinstance(a, float)]
        each = [plain(*arrays, *numbers) for arrays in own]
        for part, (array, other) in enumerate(zip(_tuple(found), _tuple(plain(*arguments)), strict=True)):
            alone = np.stack([_tuple(one)[part] for one in each])
            tolerance = 100 * np.finfo(dtype).eps * max(1.0, np.abs(alone).max())
            assert np.allclose(other, alone, rtol=0, atol=tolerance), name
            assert np.allclose(array, alone, rtol=0, atol=tolerance), name
            assert not np.allclose(array[::-1], alone, rtol=0, atol=tolerance), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", [BiasReLU((Bias(5), ReLU())), NormReLU((BatchNorm(5), ReLU()))], ids=["bias", "norm"])
def test_groups_on_runs_are_the_group_on_each(group, dtype):
    rng, (runs, rows, features) = np.random.default_rng(0), (6, 7, 5)
    x, delta = (rng.standard_normal((runs, rows, features)).astype(dtype) for _ in range(2))
    drawn = {name: rng.standard_normal((runs, features)).astype(dtype) for name in ("gain", "shift")}
    weights = drawn if isinstance(group, NormReLU) else drawn["shift"]

    def both_ways(weights, x, delta):
        y, cache = group.forward(weights, x)
        return [y, *flatten(group.grad_pull(weights, cache, delta)).values()]

    with threads(2):
        found = both_ways(weights, x, delta)
    own = [
        weights[r] if weights is not drawn else {name: array[r] for name, array in drawn.items()} for r in range(runs)
    ]
    alone = [np.stack(parts) for parts in zip(*map(both_ways, own, x, delta), strict=True)]
    tolerance = 100 * np.finfo(dtype).eps  # sums over seven rows
    for array, other in zip(found, alone, strict=True):
        size = max(1.0, np.abs(other).max())
        assert np.allclose(array, other, rtol=0, atol=tolerance * size)
        assert not np.allclose(array[::-1], other, rtol=0, atol=tolerance * size)


def test_losses_of_runs_are_the_loss_of_each():
    rng = np.random.default_rng(0)
    outputs, targets = rng.standard_normal((4, 6, 5)), rng.dirichlet(np.ones(5), (4, 6))
    loss, delta = cross_entropy(outputs, targets, 1)
    for plain in (cross_entropy, reference_losses.cross_entropy):
        alone, errors = zip(*(plain(*pair) for pair in zip(outputs, targets, strict=True)), strict=True)
        assert np.allclose(loss, alone, rtol=1e-14)
        assert np.allclose(delta, errors, rtol=0, atol=1e-15)
        assert not np.allclose(loss[::-1], alone, rtol=1e-2)


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


RATES = np.array([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("name", "arrays", "numbers"),
    [
        ("sgd", 3, (RATES, 0.9, 0.0, 0.1, 0.2 * RATES)),
        ("rmsprop", 5, (RATES, 0.9, 1e-8, 0.5, RATES, 0.1)),
        ("adam", 4, (RATES, 0.9, 0.99, 1e-8, 0.1, RATES, 3)),
        ("amsgrad", 5, (RATES, 0.9, 0.99, 1e-8, 0.1, 0.1, 3)),
        ("muon", 3, (RATES, 0.9, 0.9, 5, 0.1, 0.1)),
    ],
)
def test_optimiser_steps_with_numbers_per_run_are_those_of_each_run(name, arrays, numbers):
    rng = np.random.default_rng(0)
    values = [np.abs(rng.standard_normal((3, 6, 4))) for _ in range(arrays)]
    if name == "rmsprop":
        values[3] *= 0.01  # a mean whose square is below the second moment
    found = getattr(cpu_optimisers, name)(*(value.copy() for value in values), *numbers)
    plain = getattr(reference_optimisers, name)(*values, *numbers)
    for r in range(3):
        own = [number[r] if isinstance(number, np.ndarray) else number for number in numbers]
        alone = getattr(reference_optimisers, name)(*(value[r] for value in values), *own)
        for part, single in enumerate(alone):
            for several in (found, plain):
                assert np.allclose(several[part][r], single, rtol=1e-13, atol=1e-14)
        assert not np.allclose(found[0][(r + 1) % 3], alone[0], rtol=1e-3)


def test_gradients_are_clipped_run_by_run():
    gradients = {"a": np.array([[3.0, 4.0], [0.3, 0.4]]), "b": np.zeros((2, 1, 1))}
    found = clipped(gradients, 1.0, leading=1)["a"]
    assert np.allclose(found, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-5)
    assert not np.allclose(clipped(gradients, 1.0)["a"], found, rtol=1e-2)


def test_groups_of_layers_stay_groups_in_an_ensemble():
    model, rng = mlp(7, (8, 6), 3, norm=None), np.random.default_rng(0)
    x, drawn = rng.standard_normal((2, 9, 7)), [initial_weights(model, seed) for seed in (0, 1)]
    both = tuple(None if one is None else np.stack([one, other]) for one, other in zip(*drawn, strict=True))
    plain, groups = (forward(side_by_side(some, 2), both, x)[0] for some in (model, fused(model)))
    assert np.array_equal(plain, groups)
    for r in range(2):
        assert np.allclose(plain[r], forward(model, drawn[r], x[r])[0], rtol=0, atol=1e-14)
    assert not np.allclose(plain[0], forward(model, drawn[1], x[0])[0], rtol=0, atol=1e-3)


def test_a_grid_is_every_combination_and_ranks_are_for_rules_that_compress():
    members = grid([rules.backpropagation(), rules.low_rank(9)], [sgd(0.1), sgd(0.2)], seeds=(0, 4), ranks=(1, 2))
    assert len(members) == 2 * 2 + 2 * 2 * 2
    assert {member.rule.rank for member in members} == {None, 1, 2}
    assert [member.seed for member in members[:4]] == [0, 4, 0, 4]
    assert grid(rules.backpropagation(), sgd(0.1)) == (Member(rules.backpropagation(), sgd(0.1)),)
