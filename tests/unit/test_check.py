"""The checker: each rule on either side of its limit, what a violation says, and what is disputed."""

import pytest

from anew.chips import load_chip
from anew.chips.check import check, check_text, refused
from anew.mil import Builder, TensorType

CONV = {"strides": [1, 1], "pad_type": "valid", "pad": [0, 0, 0, 0], "dilations": [1, 1], "groups": 1}
FLAGS = {"transpose_x": False, "transpose_y": True}


def one(kind, shape, **parameters):
    """A function of one operation of an input x."""
    b = Builder()
    return b.function([b.op(kind, x=b.input("x", shape), **parameters)])


def convolution(shape, kernel, baked=True):
    b = Builder()
    x, type = b.input("x", shape), TensorType("fp16", kernel)
    w = b.constant("weight", type, "w") if baked else b.input("w", kernel)
    return b.function([b.op("conv", x=x, weight=w, **CONV)])


def attention(length):
    b = Builder()
    q, k, v = (b.input(name, (1, 2, length, 8)) for name in "qkv")
    return b.function([b.op("scaled_dot_product_attention", query=q, key=k, value=v)])


def product(rank):
    b = Builder()
    x = b.input("x", (1,) * (rank - 1) + (4,))
    return b.function([b.op("matmul", x=x, y=x, **FLAGS)])


#: (chip, what is refused, what is not, words of the sentence)
LIMITS = {
    "max_axis": ("m3", one("relu", (2, 16385)), one("relu", (2, 16384)), "axis of 16385 elements; m3 takes 1 to 16384"),
    "max_axis, m4": ("m4", one("relu", (65537,)), one("relu", (65536,)), "axis of 65537 elements; m4 takes 1 to 65536"),
    "max_channels": (
        "m4",
        convolution((1, 4, 1, 8), (65537, 4, 1, 1)),
        convolution((1, 4, 1, 8), (65536, 4, 1, 1)),
        "axis of 65537 elements; m4 takes 1 to 65536",
    ),
    "max_rank": ("m4", one("abs", (1,) * 6), one("abs", (1,) * 5), "has rank 6; m4 takes at most 5"),
    "max_matmul_rank": ("m4", product(5), product(4), "has rank 5; m4 takes at most 4"),
    "max_transpose": (
        "m1",
        one("transpose", (2, 1024, 8192), perm=[0, 2, 1]),
        one("transpose", (1024, 8191, 2), perm=[1, 0, 2]),
        "moves axes with a product of 8388608; m1 takes at most 8388607",
    ),
    "max_kernel_width": (
        "m1",
        convolution((1, 4, 20, 20), (4, 4, 1, 14)),
        convolution((1, 4, 20, 20), (4, 4, 14, 13)),
        "kernel of width 14; m1 takes at most 13",
    ),
    "runtime_kernel_batch": (
        "m4",
        convolution((2, 4, 3, 3), (4, 4, 1, 1), baked=False),
        convolution((2, 4, 3, 3), (4, 4, 1, 1)),
        "no constant weight and a batch of 2; m4 takes at most 1",
    ),
    "tile_factors": (
        "m4", one("tile", (1, 4), reps=[5, 1]), one("tile", (1, 4), reps=[4, 3]), "5 times; m4 takes 2, 3, 4, 8",
    ),
    "max_sdpa_length": ("m4", attention(2049), attention(2048), "a sequence of 2049; m4 takes at most 2048"),
}  # fmt: skip


@pytest.mark.parametrize("row", LIMITS)
def test_either_side_of_a_limit(row):
    name, beyond, within, words = LIMITS[row]
    chip = load_chip(name)
    (violation, *_) = refused(check(beyond, chip))
    assert words in str(violation)
    assert violation.source == chip.row(row.partition(",")[0]).source
    assert violation.source in str(violation)
    assert violation.chip == name
    assert not violation.switch
    assert refused(check(within, chip)) == []


def test_a_violation_names_operation_value_and_shape():
    (violation,) = check(one("tile", (1, 4), reps=[5, 1]), load_chip("m4"))
    assert (violation.operation, violation.value, violation.shape) == ("tile", "tile", (5, 4))
    assert str(violation).startswith("tile 'tile' [5, 4] repeats an axis 5 times; m4 takes 2, 3, 4, 8 (ANEForge")


def test_what_a_switch_allows_is_listed_but_not_refused():
    function = one("softmax", (2, 48), axis=-1)
    (violation,) = check(function, load_chip("m3"))
    assert (violation.switch, violation.refused) == ("softmax_power_of_2", False)
    assert "disputed, switch 'softmax_power_of_2'; hollance" in str(violation)
    assert check(function, load_chip("m4")) == []  # nobody saw it refused there
    assert len(refused(check(function, load_chip("m4", {"softmax_power_of_2": "refuse"})))) == 1


def test_an_epsilon_and_a_factor_do_not_hide_a_reduction_from_its_root():
    b = Builder()
    total = b.op("reduce_sum", x=b.input("x", (4, 8)), axes=[-1], keep_dims=True)
    mean = b.op("mul", x=total, y=0.125)
    function = b.function([b.op("rsqrt", x=b.op("add", x=mean, y=1e-3)), b.op("rsqrt", x=b.input("z", (4,)))])
    violations = check(function, load_chip("m3"))
    assert [v.switch for v in violations] == ["rsqrt_after_reduce"]
    assert "after reduce_sum" in violations[0].rule


def test_text_of_operations_that_anew_does_not_know():
    text = "program(1.3) { func main<ios18>(tensor<fp16, [4]> x) { tensor<fp16, [4]> y = sinh(x = x); } -> (y); }"
    (violation,) = check_text(text, load_chip("m5"))
    assert str(violation) == "sinh 'y' does not exist on m5 (ANEForge 0.4.0 _op_catalog.py)"


def test_an_operation_by_generation():
    text = "tensor<fp16, [4]> y = cos(x = x)"
    assert [bool(check_text(text, load_chip(f"m{i}"))) for i in range(1, 6)] == [True, True, False, False, False]
