"""scripts/doc_pictures.py: what it paints, and that every file of it is small and credited."""

from __future__ import annotations

import importlib.util
from pathlib import Path
import sys

import cv2
from depth_node.camera import Camera
from depth_node.images import colorize
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'scripts' / 'doc_pictures.py'


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    spec = importlib.util.spec_from_file_location('doc_pictures', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'doc_pictures', module)
    spec.loader.exec_module(module)
    return module


class Pipeline:
    """Gives a depth that is known: 2 m on the left half, 1 m on the right, one hole."""

    def run(self, rgb, camera, stamp=0.0):
        depth = np.full(rgb.shape[:2], 2.0, np.float32)
        depth[:, rgb.shape[1] // 2:] = 1.0
        depth[: rgb.shape[0] // 4] = np.nan
        return type('Frame', (), {'depth': depth})()


def shot(script, true_depth=None):
    rgb = np.full((60, 100, 3), (10, 120, 240), np.uint8)
    return script.Shot(rgb, Camera.from_fov((60, 100), 60.0), true_depth)


def test_panels_stand_side_by_side_in_one_range_of_colours(script):
    true = np.full((30, 50), 4.0, np.float32)  # half the size of the picture
    true[:, :25] = 1.0
    page = script.Page('x', (shot(script, true), shot(script, true)), 'about', 'credit')
    found = script.page_picture(page, Pipeline())
    width, height = script.PANEL_WIDTH_PX, 180
    assert found.shape[1] == 3 * width
    near, far = 1.0, 4.0  # of the truth

    def colour(metres):
        return colorize(np.full((2, 3), metres, np.float32), near, far)[0, 0].astype(int)

    for row in (0, 1):
        top = script.CAPTION_PX + height * row
        assert found[top + 90, 50].tolist() == [240, 120, 10]
        for u, metres in ((width + 50, 2.0), (width + 250, 1.0), (2 * width + 50, 1.0),
                          (2 * width + 250, 4.0)):
            assert np.abs(found[top + 90, u] - colour(metres)).max() <= 1, (row, u)
        assert found[top + 10, width + 50].tolist() == [0, 0, 0]  # no depth


def test_without_truth_the_prediction_gives_the_range(script):
    found = script.page_picture(script.Page('x', (shot(script),), 'a', 'c'), Pipeline())
    assert found.shape[1] == 2 * script.PANEL_WIDTH_PX
    assert script.colour_range([np.array([[1.0, np.nan, np.inf, -np.inf, 3.0]])]) == (
        pytest.approx(1.02), pytest.approx(2.98))
    with pytest.raises(script.DataError, match='no depth'):
        script.colour_range([np.full((2, 2), np.nan, np.float32)])


def test_a_picture_that_cannot_become_small_is_refused(script, tmp_path):
    noise = np.random.default_rng(3).integers(0, 255, (1200, 1200, 3)).astype(np.uint8)
    with pytest.raises(script.DataError, match='more than 120000 bytes'):
        script.write_jpeg(tmp_path / 'x.jpg', noise)
    script.write_jpeg(tmp_path / 'y.jpg', cv2.resize(noise[:20, :20], (900, 700)))
    assert (tmp_path / 'y.jpg').stat().st_size <= script.MAX_BYTES


def test_all_pages_with_a_network(script, tiny_card, tmp_path, capsys):
    pytest.importorskip('skimage')
    tiny_card('other')
    samples = tmp_path / 'samples'
    samples.mkdir()
    words = ['--out', str(tmp_path / 'out'), '--opencv-samples', str(samples), '--model',
             str(tmp_path / 'other.yaml'), '--backend', 'onnxruntime']
    assert script.main(words) == 1
    assert 'apt install opencv-doc' in capsys.readouterr().err
    cv2.imwrite(str(samples / 'left.jpg'), np.full((45, 60, 3), 90, np.uint8))
    assert script.main(words) == 0
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == ['README.md', 'books.jpg', 'coffee.jpg', 'demo.jpg', 'motorcycle.jpg']
    text = (tmp_path / 'out/README.md').read_text()
    assert 'other fp32 (other.onnx, sha256' in text
    for name in names[1:]:
        assert f'({name})' in text
        assert (tmp_path / 'out' / name).stat().st_size <= script.MAX_BYTES
        assert cv2.imread(str(tmp_path / 'out' / name)) is not None


def test_the_committed_pictures_are_those_of_the_list():
    folder = SCRIPT.parents[1] / 'docs' / 'pictures'
    text = (folder / 'README.md').read_text()
    listed = [path for path in folder.glob('*.jpg') if f'({path.name})' in text]
    assert sorted(listed) == sorted(folder.glob('*.jpg'))
    assert len(listed) == 4
    readme = (SCRIPT.parents[1] / 'README.md').read_text()
    assert [path.name for path in listed if f'docs/pictures/{path.name}' not in readme] == []
