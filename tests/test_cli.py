"""The command line: what it prints, what it writes, and its one-line errors."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import convwright
from convwright.cli import main
from convwright.cli.conv import parse_padding
from convwright.cli.images import Preparation, read_image
from convwright.cli.options import parse_shape
from convwright.cli.run import best_classes
from convwright.spec import (
    ConvSpec,
    DeformableSpec,
    HetSpec,
    IntegerSpec,
    SeparableSpec,
    ShuffledSpec,
    SpatialSpec,
)


def save(path: Path, nodes: list[Any], shape: list[Any], out: list[Any], **constants: np.ndarray) -> str:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", out))]
    weights = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


@pytest.fixture
def halver(tmp_path: Path) -> str:
    """Halves every pixel of an RGB image of any size: a depthwise 1x1 convolution."""
    conv = helper.make_node("Conv", ["x", "w"], ["y"], group=3)
    return save(tmp_path / "halver.onnx", [conv], ["N", 3, "H", "W"], ["N", 3, "H", "W"], w=np.full((3, 1, 1, 1), 0.5))


@pytest.fixture
def brightest(tmp_path: Path) -> str:
    """Classifies an 8x8 RGB image by its brightest channel."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    return save(tmp_path / "brightest.onnx", nodes, [1, 3, 8, 8], [1, 3])


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.zeros((6, 10, 3), np.uint8)
    pixels[..., 1] = 200
    pixels[0, 0] = (100, 40, 60)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def fails(result: Result, *parts: str) -> None:
    """One line on standard error with these parts in it, nothing on standard output, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for part in ("convwright: ", *parts):
        assert part in result.stderr


def test_version() -> None:
    assert invoke("--version").output == f"convwright {convwright.__version__}\n"


def test_help_names_the_verbs() -> None:
    output = invoke("--help").output
    assert all(verb in output for verb in ("run", "bench", "explain", "conv", "kinds"))


class TestRun:
    def test_classes_best_first(self, brightest: str, photo: str, tmp_path: Path) -> None:
        labels = tmp_path / "labels.txt"
        labels.write_text("red\ngreen\nblue\n")
        result = invoke("run", brightest, photo, "--labels", str(labels), "--top", "2")
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == photo
        assert lines[1].endswith("green")
        assert len(lines) == 3

    def test_json(self, brightest: str, photo: str) -> None:
        (report,) = json.loads(invoke("run", brightest, photo, "--json").stdout)
        (output,) = report["outputs"]
        assert output["shape"] == [1, 3]
        assert output["classes"][0]["class"] == 1
        assert output["classes"][0]["score"] == pytest.approx(200 / 255, abs=0.02)

    def test_image_out(self, halver: str, photo: str, tmp_path: Path) -> None:
        target = tmp_path / "half.png"
        result = invoke("run", halver, photo, "--output", str(target))
        assert result.exit_code == 0, result.output
        half = np.asarray(Image.open(target))
        assert half.shape == (6, 10, 3)
        assert half[0, 0].tolist() == [50, 20, 30]
        assert [path.name for path in tmp_path.glob(".*")] == []

    def test_images_into_a_folder(self, halver: str, photo: str, tmp_path: Path) -> None:
        other = tmp_path / "other.jpg"
        Image.open(photo).save(other)
        result = invoke("run", halver, photo, str(other), "--output", str(tmp_path / "out") + "/")
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other.png", "photo.png"]

    def test_arrays_in_and_out(self, halver: str, tmp_path: Path) -> None:
        x = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        result = invoke("run", halver, str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy"))
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), x / 2, rtol=1e-6)

    def test_no_progress_in_a_pipe(self, brightest: str, photo: str) -> None:
        assert invoke("run", brightest, photo).stderr == ""

    def test_not_an_image(self, brightest: str, tmp_path: Path) -> None:
        path = tmp_path / "notes.png"
        path.write_text("not a picture")
        fails(invoke("run", brightest, str(path)), "notes.png", "not an image")

    def test_cut_image(self, brightest: str, photo: str, tmp_path: Path) -> None:
        path = tmp_path / "cut.png"
        path.write_bytes(Path(photo).read_bytes()[:60])
        fails(invoke("run", brightest, str(path)), "cut.png", "damaged image")

    def test_decompression_bomb(self, brightest: str, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        fails(invoke("run", brightest, photo), "photo.png", "60 pixels")

    def test_no_such_image(self, brightest: str, tmp_path: Path) -> None:
        fails(invoke("run", brightest, str(tmp_path / "none.png")), "none.png", "does not exist")

    def test_not_a_model(self, photo: str) -> None:
        fails(invoke("run", photo, photo), "photo.png")

    def test_not_an_array(self, brightest: str, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': broken")
        fails(invoke("run", brightest, str(path)), "x.npy", "not a .npy array")

    def test_array_of_objects_is_not_unpickled(self, brightest: str, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
        fails(invoke("run", brightest, str(tmp_path / "x.npy")), "x.npy", "not a .npy array")

    def test_wrong_shape(self, brightest: str, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.zeros((1, 5, 8, 8), np.float32))
        fails(invoke("run", brightest, str(tmp_path / "x.npy")), "x.npy", "5")

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            (["--mean", "a,b"], "--mean a,b"),
            (["--mean", "1,2"], "2 values for an image of 3 channels"),
            (["--std", "0"], "zero"),
            (["--top", "0"], "0"),
            (["--threads", "-1"], "-1"),
            (["--output", "y.xyz"], "y.xyz"),
            (["--output", "nowhere/y.png"], "no folder nowhere"),
            (["--nonsense"], "--nonsense"),
        ],
    )
    def test_bad_options(self, brightest: str, photo: str, options: list[str], part: str) -> None:
        fails(invoke("run", brightest, photo, *options), part)

    def test_two_images_one_file(self, halver: str, photo: str, tmp_path: Path) -> None:
        target = tmp_path / "one.png"
        fails(invoke("run", halver, photo, photo, "-o", str(target)), "one.png", "2 images need a folder")
        assert not target.exists()

    def test_no_image_shaped_output(self, brightest: str, photo: str, tmp_path: Path) -> None:
        target = tmp_path / "y.png"
        fails(invoke("run", brightest, photo, "-o", str(target)), "no output is shaped like an image", "(1, 3)")
        assert not target.exists()


class TestImages:
    def test_resized_where_fixed(self, photo: str) -> None:
        assert read_image(photo, 3, (4, 7)).shape == (4, 7, 3)
        assert read_image(photo, 3, (None, None)).shape == (6, 10, 3)

    def test_luminance(self, photo: str) -> None:
        assert read_image(photo, 1, (None, None)).shape == (6, 10, 1)

    def test_turned_as_exif_says(self, photo: str, tmp_path: Path) -> None:
        picture = Image.open(photo)
        exif = picture.getexif()
        exif[0x0112] = 6  # turned a quarter clockwise
        picture.save(tmp_path / "turned.png", exif=exif)
        pixels = read_image(str(tmp_path / "turned.png"), 3, (None, None))
        assert pixels.shape == (10, 6, 3)
        assert pixels[0, -1].tolist() == [100, 40, 60]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
    def test_every_mode_becomes_rgb(self, mode: str, tmp_path: Path) -> None:
        picture = Image.fromarray(np.full((4, 4), 51400, np.uint16)) if mode == "I;16" else None
        picture = picture or Image.new("L", (4, 4), 200).convert("RGB").convert(mode)
        path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16") else "x.png")
        picture.save(path)
        pixels = read_image(str(path), 3, (None, None))
        assert pixels.shape == (4, 4, 3)
        assert mode == "1" or np.abs(pixels.astype(int) - 200).max() <= 4  # a palette is coarse

    def test_preparation_is_undone(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
        preparation = Preparation(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        values = preparation.apply(pixels)
        assert values.shape == (3, 5, 6)
        assert values.dtype == np.float32
        assert (preparation.undo(values) == pixels).all()

    def test_undone_values_stay_in_range(self) -> None:
        values = np.array([[[-3.0, 7.0, np.nan, np.inf, -np.inf]]], np.float32)
        assert Preparation().undo(values)[0, :, 0].tolist() == [0, 255, 0, 255, 0]


def test_best_classes_of_probabilities_are_left_alone() -> None:
    first, second = best_classes(np.array([0.2, 0.7, 0.1]), ["a", "b"], 2)
    assert (first["label"], first["probability"]) == ("b", pytest.approx(0.7))
    assert second["label"] == "a"


@pytest.mark.parametrize("text", ["1x-3", "axb", "", "1,3"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(Exception, match=r"shape|negative"):
        parse_shape(text)


class TestExplain:
    def test_table_and_json(self, halver: str) -> None:
        result = invoke("explain", halver, "--shape", "1x3x16x16")
        assert result.exit_code == 0, result.output
        assert result.stdout.strip()
        assert json.loads(invoke("explain", halver, "--shape", "1x3x16x16", "--json").stdout)

    def test_free_sizes_need_a_shape(self, halver: str) -> None:
        fails(invoke("explain", halver), "'x'", "--shape")

    def test_wrong_rank(self, halver: str) -> None:
        fails(invoke("explain", halver, "--shape", "3x16x16"), "(3, 16, 16)", "4 axes")


class TestBench:
    def test_table(self, halver: str) -> None:
        arguments = ["bench", halver, "--shape", "1x3x16x16", "--against", "onnxruntime", "--seconds", "0"]
        done = subprocess.run(
            [sys.executable, "-m", "convwright", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "onnxruntime" in done.stdout
        assert "ratio" in done.stdout
        assert done.stderr == ""

    def test_json(self, halver: str) -> None:
        arguments = ["--shape", "1x3x16x16", "--batch", "2", "--against", "onnxruntime", "--seconds", "0", "--json"]
        result = invoke("bench", halver, *arguments)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["inputs"] == {"x": [2, 3, 16, 16]}
        own, peer = report["rows"]
        assert (own["peer"], peer["peer"]) == ("convwright", "onnxruntime")
        assert own["ratio"] == 1
        for row in own, peer:
            assert row["median_s"] > 0
            assert row["first_s"] > 0
            assert row["error"] < 1e-5
            assert row["reason"] is None

    def test_unknown_peer(self, halver: str) -> None:
        fails(invoke("bench", halver, "--against", "fastest"), "fastest", "onnxruntime")

    def test_not_a_model(self, photo: str) -> None:
        fails(invoke("bench", photo), "photo.png")


class TestKinds:
    def test_table(self) -> None:
        result = invoke("kinds")
        assert result.exit_code == 0, result.output
        for name in ("standard", "depthwise", "het", "mix", "integer", "out k C/G K", "FLOPs are twice the MACs"):
            assert name in result.stdout

    def test_formulas_are_those_of_the_descriptions(self) -> None:
        kinds = {kind["name"]: kind for kind in json.loads(invoke("kinds", "--json").stdout)}
        size = (9, 7)

        def conv(in_channels: int, out_channels: int, **options: Any) -> ConvSpec:
            return ConvSpec(in_channels, out_channels, (3, 3), padding="same", **options)

        specs: dict[str, Any] = {
            "standard": conv(6, 8), "grouped": conv(6, 8, groups=2), "depthwise": conv(6, 18, groups=6),
            "pointwise": ConvSpec(6, 8, (1, 1)), "dilated": conv(6, 8, dilation=2),
            "separable": SeparableSpec(conv(6, 8)), "spatial": SpatialSpec(conv(6, 8), 5),
            "transposed": conv(6, 8, groups=2, stride=2, transposed=True),
            "deformable": DeformableSpec(conv(6, 8, groups=2)), "het": HetSpec(conv(6, 8), 2),
            "shuffled": ShuffledSpec(ConvSpec(6, 8, (1, 1), groups=2)), "integer": IntegerSpec(conv(6, 8, groups=2)),
        }  # fmt: skip
        for name, spec in specs.items():
            plain = getattr(spec, "conv", spec)
            values = {
                "C": 6, "K": plain.out_channels, "G": plain.groups, "P": 2, "M": 5, "k1": 3, "k2": 3,
                "k": int(np.prod(plain.kernel)), "inputs": 63, "out": int(np.prod(spec.output_size(size))), "out1": 63,
            }  # fmt: skip

            def value(formula: str, values: Any = values) -> float:
                """Spaces between factors stand for products."""
                written = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", re.sub(r"\bin\b", "inputs", formula))
                return eval(written, {}, values)  # type: ignore[no-any-return]

            assert value(kinds[name]["macs"]) == spec.macs(size), name
            assert value(kinds[name]["parameters"]) == spec.parameters, name
        assert set(kinds) == {*specs, "mix"}


class TestConv:
    common = ("conv", "--in", "1x64x56x56", "--out-channels", "128")

    def test_text(self) -> None:
        result = invoke(*self.common, "--kernel", "3", "--stride", "2", "--groups", "4")
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        for part in ("1x128x27x27", "18,560", "13,436,928", "26,873,856", "3x3", "direct planes", "GFLOP/s"):
            assert part in result.stdout

    def test_json(self) -> None:
        options = ("--kernel", "3x5", "--padding", "0:1x2", "--dilation", "2", "--no-bias", "--threads", "1", "--json")
        report = json.loads(invoke("conv", "--in", "2x4x9x20", "--out-channels", "6", *options).stdout)
        spec = ConvSpec(4, 6, (3, 5), padding=((0, 1), (2, 2)), dilation=2, bias=False)
        assert report["output_shape"] == [2, 6, *spec.output_size((9, 20))]
        assert (report["parameters"], report["macs"]) == (spec.parameters, spec.macs((9, 20), 2))
        assert report["flops"] == 2 * report["macs"]
        assert report["receptive_field"] == [5, 9]
        assert report["measured_seconds"] > 0
        assert {row["name"] for row in report["algorithms"]} >= {"direct", "winograd"}

    def test_measures_every_algorithm(self) -> None:
        report = json.loads(
            invoke("conv", "--in", "1x4x50", "--out-channels", "4", "--kernel", "3", "--measure", "--json").stdout
        )
        for row in report["algorithms"]:
            assert (row["measured_seconds"] is None) == (row["why_not"] is not None)

    def test_transposed(self) -> None:
        options = ("--kernel", "4", "--stride", "2", "--transposed", "--padding", "1", "--dtype", "float64", "--json")
        report = json.loads(invoke("conv", "--in", "1x4x5x6x7", "--out-channels", "2", *options).stdout)
        assert report["output_shape"] == [1, 2, 10, 12, 14]
        assert report["receptive_field"] == [2, 2, 2]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--kernel", "3", "--groups", "3"), "in_channels 64 is not divisible by groups 3"),
            (("--kernel", "3x"), "'3x'"),
            (("--kernel", "3x3x3"), "(3, 3, 3)"),
            (("--kernel", "0"), "got 0"),
            (("--kernel", "99"), "(99, 99)"),
            (("--kernel", "3", "--stride", "-1"), "got -1"),
            (("--kernel", "3", "--padding", "half"), "'half'"),
            (("--kernel", "3", "--padding", "-1"), "got -1"),
            (("--kernel", "3", "--padding-mode", "mirror"), "'mirror'"),
            (("--kernel", "3", "--dtype", "float16"), "float16"),
            (("--kernel", "3", "--output-padding", "1"), "transposed convolutions only"),
            ((), "--kernel"),
        ],
    )
    def test_one_line_errors(self, options: tuple[str, ...], words: str) -> None:
        fails(invoke(*self.common, *options), words)

    def test_shapes(self) -> None:
        fails(invoke("conv", "--in", "1x64", "--out-channels", "1", "--kernel", "3"), "'1x64'")
        fails(invoke("conv", "--in", "ax64x3", "--out-channels", "1", "--kernel", "3"), "ax64x3")
        fails(invoke("conv", "--in", "0x64x9", "--out-channels", "1", "--kernel", "3"), "batch must be at least 1")

    def test_forms_of_padding(self) -> None:
        assert parse_padding("1x2") == ((1, 1), (2, 2))
        assert parse_padding("1:2") == ((1, 2),)
        assert parse_padding("valid") == "valid"


class TestNetworks:
    def test_table(self) -> None:
        result = invoke("networks")
        assert result.exit_code == 0, result.output
        (line,) = [line for line in result.stdout.splitlines() if " resnet50 " in line]
        for figure in ("3x224x224", "25.6 M", "4.09 G", "8.18 G", "9.63 MB", "427 x 427"):
            assert figure in line
        assert result.stderr == ""

    def test_json(self) -> None:
        rows = {row["name"]: row for row in json.loads(invoke("networks", "--json").stdout)}
        assert rows.keys() == convwright.networks.TABLE.keys()
        assert rows["inception_v3"] == {
            "name": "inception_v3",
            "input": [3, 299, 299],
            "parameters": 23_834_568,
            "macs": 5_713_216_096,
            "flops": 11_426_432_192,
            "bytes_peak": 11_063_808,
            "receptive_field": [1311, 1311],
        }

    def test_a_name_stands_for_a_model(self, photo: str) -> None:
        report = json.loads(invoke("cost", "squeezenet1_1", "--json").stdout)
        assert report["total"]["parameters"] == 1_235_496
        assert invoke("receptive-field", "squeezenet1_1", "--layer", "features.12.squeeze").exit_code == 0
        explained = invoke("explain", "squeezenet1_1", "--shape", "1x3x224x224", "--json")
        assert explained.exit_code == 0, explained.output
        result = invoke("run", "squeezenet1_1", photo)
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith("convwright: warning: built-in network 'squeezenet1_1' has random weights")

    @pytest.mark.long
    def test_a_name_is_timed(self) -> None:
        arguments = ["bench", "squeezenet1_1", "--against", "onnxruntime", "--seconds", "0", "--json"]
        done = subprocess.run([sys.executable, "-m", "convwright", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["model"] == "squeezenet1_1"
        assert report["inputs"] == {"x": [1, 3, 224, 224]}

    def test_a_file_of_that_name_wins(self, halver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path(halver).rename("resnet50")
        arguments = ("--shape", "1x3x8x8", "--json")
        assert json.loads(invoke("cost", "resnet50", *arguments).stdout)["total"]["parameters"] == 3

    def test_neither_a_file_nor_a_name(self, tmp_path: Path) -> None:
        for verb in "cost", "explain", "bench", "receptive-field":
            fails(invoke(verb, "resnet5"), "file 'resnet5' does not exist", "did you mean resnet50")
        fails(invoke("cost", "thing.onnx"), "file 'thing.onnx' does not exist")
        fails(invoke("cost", str(tmp_path)), "is a directory")
