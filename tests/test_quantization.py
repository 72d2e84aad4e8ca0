"""How rows lie on disk: what each type loses, what int8 keeps apart, and what does not fit."""

import pytest
import torch

from strata.activations.quantization import STORE_DTYPES, Int8, Plain, bytes_per_row, check_dtype
from strata.sae.metrics import fvu


def rows_like_a_residual_stream(n_rows: int = 4000, d_in: int = 128) -> torch.Tensor:
    """Three channels far out (one by its mean, one by its spread, one by both) and sinks 200 times as long."""
    x = torch.randn(n_rows, d_in, generator=torch.Generator().manual_seed(0))
    x[:, 100] += 900
    x[:, 31] *= 30
    x[:, 7] = x[:, 7] * 60 + 300
    x[::500] *= 200
    return x


@pytest.mark.parametrize(("dtype", "relative"), [("fp32", 0.0), ("fp16", 2**-11), ("bf16", 2**-8)])
def test_plain_types_round_and_nothing_else(dtype: str, relative: float):
    x = torch.randn(50, 8)
    back = Plain(dtype).decode(Plain(dtype).encode(x, site="a")).float()
    assert ((back - x).abs() <= relative * x.abs()).all()


def test_int8_rounds_to_half_a_level_of_its_row():
    x = torch.randn(300, 64) * torch.logspace(-3, 3, 300)[:, None]
    encoding = Int8(centre=torch.zeros(64), outliers=torch.zeros(0, dtype=torch.int64))
    parts = encoding.encode(x, site="a")
    assert parts["rows"].dtype == torch.int8
    assert set(parts) == set(encoding.parts) == {"rows", "scale"}
    level = x.abs().amax(1, keepdim=True) / 127
    assert ((encoding.decode(parts) - x).abs() <= 0.501 * level).all()


def test_int8_keeps_outlier_channels_apart_and_the_others_exact():
    x = rows_like_a_residual_stream()
    no_sinks = x[torch.arange(len(x)) % 500 != 0]
    fitted = Int8.fit(x)
    assert {7, 31} <= set(fitted.outliers.tolist())
    ordinary = [channel for channel in range(128) if channel not in (7, 31)]

    def error(encoding: Int8) -> float:
        back = encoding.decode(encoding.encode(no_sinks, site="a"))
        return fvu(no_sinks[:, ordinary], back[:, ordinary]).item()

    assert error(fitted) < 1e-4
    assert error(Int8(fitted.centre, fitted.outliers[:0])) > 20 * error(fitted)
    apart = torch.tensor([7, 31])
    assert error(Int8(fitted.centre, apart)) < 1e-4, "channel 100 is far out by its mean alone: the centre's work"
    assert error(Int8(torch.zeros(128), apart)) > 20 * error(fitted)


def test_int8_pays_nothing_for_outliers_that_are_none():
    assert len(Int8.fit(torch.randn(4000, 128)).outliers) == 0


def test_int8_of_rows_equal_to_the_centre_and_of_narrow_sites():
    x = torch.ones(20, 4)
    fitted = Int8.fit(x)
    assert torch.equal(fitted.decode(fitted.encode(x, site="a")), x)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r'"fp16" is too narrow for the activations of layers\.3, which reach 70000\.'):
        Plain("fp16").encode(torch.full((2, 2), 70000.0), site="layers.3")
    Plain("bf16").encode(torch.full((2, 2), 70000.0), site="layers.3")
    apart = Int8(centre=torch.zeros(2), outliers=torch.tensor([1]))
    with pytest.raises(ValueError, match=r'"int8" keeps outlier channels as fp16.*layers\.3.*bf16'):
        apart.encode(torch.full((2, 2), 70000.0), site="layers.3")
    for encoding in (Plain("fp32"), Plain("fp16"), apart):
        with pytest.raises(ValueError, match=r"finite numbers\. layers\.3 holds NaN"):
            encoding.encode(torch.tensor([[1.0, float("nan")]]), site="layers.3")
    with pytest.raises(
        ValueError, match=r"`dtype` must be one of fp32, fp16, bf16, int8\. Got 'int4'\. Did you mean 'int8'"
    ):
        check_dtype("int4")


def test_bytes_of_a_row():
    assert [bytes_per_row(dtype, 100) for dtype in STORE_DTYPES] == [400, 200, 200, 104]
