"""Depth classes of transformers, built from configurations with random weights.

What is proven is what does not depend on the weights: the export, the size, the normalisation and
what the numbers mean.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

REASON = "transformers is not installed: pip install '.[hf]'"
torch = pytest.importorskip('torch')
pytest.importorskip('onnxscript')
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
tf = pytest.importorskip('transformers', reason=REASON)

from depth_node.camera import Camera  # noqa: E402
from depth_node.cli import main  # noqa: E402
from depth_node.export.card import make_card, run_file  # noqa: E402
from depth_node.export.hf import (  # noqa: E402
    Rules,
    TransformersDepth,
    canonical_focal,
    fitted_size,
    load,
    meaning_of,
    rules_of,
)
from depth_node.export.lint import lint  # noqa: E402
from depth_node.export.onnx import (  # noqa: E402
    ExportError,
    ImageToDepth,
    export_onnx,
    parity_batches,
    parity_pictures,
)
from depth_node.model_card import ModelCard, OutputSpec  # noqa: E402
from depth_node.postprocess import to_depth  # noqa: E402

IMAGENET = Rules((518, 518), True, 14, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
PROCESSOR = {
    'image_processor_type': 'DPTImageProcessor', 'do_resize': True, 'do_rescale': True,
    'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': [0.485, 0.456, 0.406],
    'image_std': [0.229, 0.224, 0.225], 'size': {'height': 56, 'width': 56},
    'keep_aspect_ratio': True, 'ensure_multiple_of': 14,
}  # fmt: skip


def depth_anything(**options):
    backbone = tf.Dinov2Config(
        image_size=28, patch_size=14, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'], apply_layernorm=True,
        reshape_hidden_states=False)  # fmt: skip
    backbone._attn_implementation = 'eager'
    return tf.DepthAnythingForDepthEstimation(tf.DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, head_hidden_size=8, **options))


def depth_anything_metric():
    return depth_anything(depth_estimation_type='metric', max_depth=20)


def dpt():
    return tf.DPTForDepthEstimation(tf.DPTConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, is_hybrid=False,
        attn_implementation='eager'))  # fmt: skip


def glpn():
    return tf.GLPNForDepthEstimation(tf.GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8, max_depth=10))  # fmt: skip


def prompt_depth_anything():
    backbone = tf.Dinov2Config(
        image_size=28, patch_size=14, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'], apply_layernorm=True,
        reshape_hidden_states=False)  # fmt: skip
    backbone._attn_implementation = 'eager'
    return tf.PromptDepthAnythingForDepthEstimation(tf.PromptDepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=8, head_hidden_size=8,
        depth_estimation_type='metric', max_depth=1))  # fmt: skip


def zoedepth(heads=(('nyu', 10.0),)):
    backbone = tf.BeitConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=32, out_features=['stage1', 'stage2', 'stage3', 'stage4'],
        reshape_hidden_states=False, use_relative_position_bias=True)  # fmt: skip
    backbone._attn_implementation = 'eager'
    return tf.ZoeDepthForDepthEstimation(tf.ZoeDepthConfig(
        backbone_config=backbone, backbone_hidden_size=24, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, bottleneck_features=8, num_relative_features=8, bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1], num_patch_transformer_layers=4,
        patch_transformer_hidden_size=128,
        patch_transformer_num_attention_heads=4, patch_transformer_intermediate_size=16,
        bin_configurations=[
            {'n_bins': 8, 'min_depth': 0.001, 'max_depth': far, 'name': name}
            for name, far in heads]))  # fmt: skip


def zoedepth_two_heads():
    return zoedepth((('nyu', 10.0), ('kitti', 80.0)))


def depth_pro():
    part = {'model_type': 'dinov2', 'hidden_size': 16, 'num_hidden_layers': 2,
            'num_attention_heads': 2, 'patch_size': 4, 'image_size': 16}  # fmt: skip
    return tf.DepthProForDepthEstimation(tf.DepthProConfig(
        fusion_hidden_size=8, patch_size=16, intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8], scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.25], scaled_images_feature_dims=[8, 8],
        use_fov_model=False, image_model_config=part, patch_model_config=part,
        fov_model_config=part))  # fmt: skip


# model, its size, the card's kind, its range, larger is farther
MODELS = {
    'depth_anything': (depth_anything, (42, 56), 'rel_inv_depth', None, False),
    'depth_anything_metric': (depth_anything_metric, (42, 56), 'depth', (0.001, 20.0), True),
    'dpt': (dpt, (32, 32), 'rel_inv_depth', None, False),
    'glpn': (glpn, (64, 96), 'depth', (0.001, 10.0), True),
    'prompt_depth_anything': (prompt_depth_anything, (42, 56), 'rel_depth', None, True),
    'zoedepth': (zoedepth, (32, 48), 'depth', (0.001, 10.0), True),
    'zoedepth_two_heads': (zoedepth_two_heads, (32, 48), 'depth', (0.001, 80.0), True),
    'depth_pro': (depth_pro, (64, 64), 'canonical_depth', (1e-4, 1e4), True),
}  # fmt: skip
HEADS = {'zoedepth_two_heads': 'kitti'}
# Others cover the class of these: the command exports the metric one (in both precisions), and
# ZoeDepth with two heads is the class with one.
SWEPT = ('depth_anything_metric', 'zoedepth')
EXPORTED = [pytest.param(name, marks=[pytest.mark.sweep] if name in SWEPT else [])
            for name in MODELS]  # fmt: skip


def lively(model, size_hw):
    """Give weights of a size at which the output varies and stays positive."""
    torch.manual_seed(5)
    model = model.eval()
    heads = []
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                spread = max(1, parameter[0].numel()) ** -0.5
                parameter.copy_(torch.randn_like(parameter) * spread)
        heads = [m for m in model.modules()
                 if isinstance(m, torch.nn.Conv2d) and m.out_channels == 1]  # fmt: skip
        seen = []
        handle = heads[-1].register_forward_hook(lambda *args: seen.append(args[2]))
        pictures = torch.from_numpy(parity_pictures(size_hw, 2)).permute(0, 3, 1, 2)
        model(pixel_values=(pictures[:1].float() - 127) / 60)
        handle.remove()
        gain = 0.3 / float(seen[0].std())
        heads[-1].weight.mul_(gain)
        if heads[-1].bias is not None:
            heads[-1].bias.copy_((heads[-1].bias - seen[0].mean()) * gain + 1.5)
    return model


@pytest.fixture(scope='module')
def networks():
    """Build each once."""
    made = {}

    def network(name) -> TransformersDepth:
        if name not in made:
            build, size_hw, *_ = MODELS[name]
            model = lively(build(), size_hw)
            made[name] = TransformersDepth(
                model, meaning_of(model.config.to_dict(), head=HEADS.get(name)), IMAGENET,
                size_hw=size_hw)  # fmt: skip
        return made[name]

    return network


@pytest.fixture(scope='module')
def exported(networks, tmp_path_factory):
    made = {}

    def path(name) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / f'{name}.onnx'
            export_onnx(networks(name), made[name])
        return made[name]

    return path


@pytest.mark.parametrize('name', EXPORTED)
def test_exported_graph_is_the_model_in_both_runtimes(networks, exported, name):
    network, path = networks(name), exported(name)
    picture = parity_pictures(network.size_hw)[1]
    mean, std = np.array(IMAGENET.mean), np.array(IMAGENET.std)
    pixels = torch.from_numpy(((picture - mean) / std).transpose(2, 0, 1)[None]).float()
    if name == 'zoedepth_two_heads':  # its own choice would depend on the picture
        vote_for(network.model, 1)
    with torch.inference_mode():  # transformers alone, normalised by hand
        expected = network.model(pixel_values=pixels).predicted_depth.numpy().squeeze()
    if name == 'depth_pro':
        expected = 1 / np.clip(expected, 1e-4, 1e4)
    assert expected.std() / expected.mean() > 0.01  # a constant would prove nothing
    floor = 1e-3 * np.abs(expected).mean()
    found = run_file(path, picture)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=floor)
    openvino = pytest.importorskip('openvino')
    settings = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1}
    compiled = openvino.Core().compile_model(str(path), 'CPU', settings)
    np.testing.assert_allclose(
        compiled({'image': picture[None]})['depth'][0, 0], expected, rtol=1e-3, atol=floor)


@pytest.mark.parametrize('name', EXPORTED)
def test_card_says_what_the_numbers_mean(networks, exported, name, tmp_path):
    network, source = networks(name), exported(name)
    path = tmp_path / 'm.onnx'
    path.write_bytes(source.read_bytes())
    card = make_card(path, network, name=name, licence='MIT', range_m=None,
                     assumed_hfov_deg=None, provenance={})  # fmt: skip
    read = ModelCard.load(card.save())
    _, size_hw, kind, range_m, farther = MODELS[name]
    assert (read.output.kind, read.output.range_m) == (kind, range_m)
    assert read.input.size_hw == size_hw
    camera = Camera.from_fov(size_hw, 60.0) if kind == 'canonical_depth' else None
    near, far = (1.0, 2.0) if farther else (2.0, 1.0)
    depth = to_depth(np.array([[near, far]], np.float32), read.output, camera)
    assert depth[0, 0] < depth[0, 1]


@pytest.mark.parametrize('name', EXPORTED)
def test_lint_and_parser_take_the_graph(exported, name, rtx_plan):
    path = exported(name)
    findings = lint(path, batches=parity_batches(MODELS[name][1]))
    assert [f for f in findings if f.severity == 'error'] == []
    assert not any(f.rule == 'cubic' for f in findings)  # position embeddings are folded
    assert rtx_plan(path) > 0


def vote_for(model, head):
    """Let the classifier of a ZoeDepth with several heads choose one, whatever it is shown."""
    last = model.metric_head.mlp_classifier.linear2
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.nn.functional.one_hot(torch.tensor(head), 2) * 10.0)


def test_head_that_is_asked_for_is_taken_and_the_classifier_left_out(exported):
    model = lively(zoedepth_two_heads(), (32, 48))
    config = model.config.to_dict()
    pixels = torch.randn(1, 3, 32, 48)
    found = {}
    for index, (name, far) in enumerate((('nyu', 10.0), ('kitti', 80.0))):
        meaning = meaning_of(config, head=name)
        assert meaning.range_m == (0.001, far)
        network = TransformersDepth(model, meaning, IMAGENET, size_hw=(32, 48))
        vote_for(model, 1 - index)  # the model alone would take the other one
        with torch.inference_mode():
            found[name] = network(pixels)[0]
        vote_for(model, index)
        with torch.inference_mode():
            torch.testing.assert_close(found[name], model(pixel_values=pixels).predicted_depth)
    assert not torch.allclose(found['nyu'], found['kitti'], rtol=0.01)
    graph = onnx.load(exported('zoedepth_two_heads')).graph
    names = ' '.join(item.name for item in graph.initializer)
    assert 'attractors.kitti' in names
    for unused in ('patch_transformer', 'mlp_classifier', 'nyu'):
        assert unused not in names


def test_prompt_depth_anything_without_a_prompt_is_depth_up_to_scale_and_shift():
    """Where the prompt adds nothing to the features, its range alone is laid over the output."""
    model = lively(prompt_depth_anything(), (42, 56))
    with torch.no_grad():
        for layer in model.neck.fusion_stage.layers:
            layer.prompt_depth_layer.convolution3.weight.zero_()
            layer.prompt_depth_layer.convolution3.bias.zero_()
    network = TransformersDepth(
        model, meaning_of(model.config.to_dict()), IMAGENET, size_hw=(42, 56))
    pixels, prompt = torch.randn(1, 3, 42, 56), torch.rand(1, 1, 6, 8) * 3 + 1
    with torch.inference_mode():
        raw = network(pixels)[0]
        metric = model(pixel_values=pixels, prompt_depth=prompt).predicted_depth
    torch.testing.assert_close(metric, raw * (prompt.max() - prompt.min()) + prompt.min())
    assert network.output_kind == 'rel_depth'
    assert 'without its prompt' in meaning_of(model.config.to_dict()).note


def test_frozen_positions_are_those_of_the_model(networks):
    network = networks('depth_anything')
    fresh = depth_anything()
    fresh.load_state_dict(network.model.state_dict(), strict=False)
    pixels = torch.randn(1, 3, *network.size_hw)
    with torch.inference_mode():
        torch.testing.assert_close(
            network.model(pixel_values=pixels).predicted_depth,
            fresh.eval()(pixel_values=pixels).predicted_depth)


def test_trap_21_depth_anything_v2_is_nearer_when_larger_and_v3_is_farther():
    relative = meaning_of({'model_type': 'depth_anything'})
    metric = meaning_of({'model_type': 'depth_anything', 'depth_estimation_type': 'metric',
                         'max_depth': 80})  # fmt: skip
    assert (relative.kind, metric.kind, metric.range_m) == ('rel_inv_depth', 'depth', (0.001, 80))
    raw = np.array([[1.0, 4.0]], np.float32)
    v2 = to_depth(raw, OutputSpec('depth', relative.kind, unit='none'))
    v2_metric = to_depth(raw, OutputSpec('depth', metric.kind, range_m=metric.range_m))
    v3 = to_depth(raw, OutputSpec('depth', 'rel_depth', unit='none'))
    assert v2[0, 0] > v2[0, 1]
    assert v2_metric[0, 0] < v2_metric[0, 1]
    assert v3[0, 0] < v3[0, 1]


def test_trap_22_focal_of_depth_anything_3_is_that_at_the_processed_size_and_sky_is_above_half(
    tiny_card,
):
    from depth_node.pipeline import DepthPipeline
    from depth_node.preprocess import ResizePlan

    # Depth Anything 3 metric: metres = f x / 300, with f at the size that the network sees.
    raw = {'output': {'kind': 'canonical_depth', 'canonical_focal_px': 300.0, 'unit': 'm',
                      'range_m': [0.01, 1000.0]}}  # fmt: skip
    card = tiny_card(changes=raw, outputs={'depth': 'depth'})
    camera = Camera.from_fov((48, 80), 60.0)  # twice the network's 24x40
    plan = ResizePlan(card.input, camera.size_hw)
    x = np.full((24, 40), 2.0, np.float32)
    depth = to_depth(x, card.output, plan.network_camera(camera))
    np.testing.assert_allclose(depth, 2.0 * (camera.fx / 2) / 300.0, rtol=1e-6)
    # Sky is a probability: what is above one half is infinitely far, what is below is no sky.
    # (a bright picture gives sigmoid(9) here, a dark one sigmoid(-1))
    sky = tiny_card('sky', outputs={'depth': 'depth', 'sky': 'confidence'}, offset=-1.0,
                    check=False, changes={'output': {'sky': 'sky'}})  # fmt: skip
    from depth_node.backends import open_backend

    with open_backend(sky, 'onnxruntime', 'fp32', threads=1) as backend:
        pipeline = DepthPipeline(backend)
        picture = np.zeros((24, 40, 3), np.uint8)
        picture[:, 20:] = 250
        frame = pipeline.run(picture, Camera.from_fov((24, 40), 60.0), 0.0)
    assert np.isinf(frame.depth[:, 22:]).all()
    assert not np.isinf(frame.depth[:, :18]).any()


@pytest.mark.parametrize(
    ('picture_hw', 'processor', 'original'),
    [
        ((480, 640), (518, 686), (518, 686)),
        ((1080, 1920), (518, 924), (518, 924)),
        ((375, 1242), (518, 1722), (518, 1722)),
        ((240, 320), (392, 518), (518, 686)),  # smaller than 518: they differ
    ],
)
def test_trap_23_processor_and_original_code_size_small_pictures_differently(
    picture_hw, processor, original
):
    assert fitted_size(IMAGENET, picture_hw) == processor
    assert fitted_size(IMAGENET, picture_hw, 'lower-bound') == original


def test_sizes_are_those_of_the_real_processor():
    pytest.importorskip('PIL')
    real = tf.DPTImageProcessor(size={'height': 518, 'width': 518}, keep_aspect_ratio=True,
                                ensure_multiple_of=14)  # fmt: skip
    rules = rules_of(real.to_dict())
    rng = np.random.default_rng(3)
    for _ in range(5):
        height, width = (int(n) for n in rng.integers(60, 400, 2))
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        found = real(picture, return_tensors='np')['pixel_values']
        assert fitted_size(rules, (height, width)) == found.shape[2:]


def test_rules_of_other_processors():
    glpn_rules = rules_of({'feature_extractor_type': 'GLPNFeatureExtractor', 'size': 480,
                           'do_normalize': True, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3,
                           'size_divisor': 32})  # fmt: skip
    assert glpn_rules.mean == (0.0, 0.0, 0.0)
    assert glpn_rules.std == pytest.approx((255.0,) * 3)
    assert fitted_size(glpn_rules, (260, 170)) == (256, 160)
    pro = rules_of({'do_rescale': True, 'rescale_factor': 1 / 255, 'image_mean': [0.5] * 3,
                    'image_std': [0.5] * 3, 'size': {'height': 1536, 'width': 1536}})  # fmt: skip
    assert pro.mean == pytest.approx((127.5,) * 3)
    assert fitted_size(pro, (480, 640)) == (1536, 1536)
    old = rules_of({'size': 384, 'image_mean': [0.5] * 3, 'image_std': [0.5] * 3})
    assert fitted_size(old, (480, 640)) == (384, 384)
    for key, value in (('image_std', [0, 1, 1]), ('image_mean', None), ('size', {'longest': 1}),
                       ('rescale_factor', None), ('ensure_multiple_of', 'x')):  # fmt: skip
        with pytest.raises(ExportError, match=r'preprocessor_config\.json'):
            rules_of({**PROCESSOR, key: value})
    with pytest.raises(ExportError, match='too small'):
        fitted_size(glpn_rules, (30, 200))
    with pytest.raises(ExportError, match='size rule'):
        fitted_size(pro, (30, 200), 'both')


def test_depth_pro_is_metric_for_the_cameras_focal_length():
    camera = Camera.from_fov((480, 640), 70.0)
    size_hw = (1536, 1536)
    spec = OutputSpec('depth', 'canonical_depth', range_m=(1e-4, 1e4),
                      canonical_focal_px=canonical_focal(size_hw, camera.size_hw))  # fmt: skip
    inverse = np.array([[0.4]], np.float32)  # what the model returns; width / f makes 1 / metres
    depth = to_depth(1 / inverse, spec, camera.scaled(size_hw))
    assert depth[0, 0] == pytest.approx(1 / (0.4 * 640 / camera.fx), rel=1e-5)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ({'model_type': 'dpt', 'backbone_config': {'model_type': 'dinov2'}}, 'give --kind depth'),
        ({'model_type': 'bert'}, 'not a depth model'),
        ({'model_type': 'zoedepth', 'bin_configurations': [{'name': 'nyu'}, {'name': 'kitti'}]},
         'heads nyu, kitti.*--head nyu or --head kitti'),
    ],
)  # fmt: skip
def test_what_a_configuration_does_not_say_is_not_guessed(config, words):
    with pytest.raises(ExportError, match=words):
        meaning_of(config)


def test_a_head_is_one_that_the_model_has():
    two = {'model_type': 'zoedepth', 'bin_configurations': [{'name': 'nyu'}, {'name': 'kitti'}]}
    with pytest.raises(ExportError, match='this ZoeDepth has nyu, kitti'):
        meaning_of(two, head='indoor')
    with pytest.raises(ExportError, match='a depth_anything has one head'):
        meaning_of({'model_type': 'depth_anything'}, head='nyu')


def test_kind_may_fill_a_gap_and_never_contradict():
    silent = {'model_type': 'dpt', 'backbone_config': {'model_type': 'dinov2'}}
    assert meaning_of(silent, 'depth').kind == 'depth'
    assert meaning_of(silent, 'rel_inv_depth').range_m is None
    with pytest.raises(ExportError, match='says rel_inv_depth'):
        meaning_of({'model_type': 'depth_anything'}, 'depth')
    with pytest.raises(ExportError, match='expected one of'):
        meaning_of(silent, 'metres')
    with pytest.raises(ExportError, match='not what dpt can return'):
        meaning_of(silent, 'log_depth')


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    """A model as transformers saves it, with its processor's file."""
    folder = tmp_path_factory.mktemp('saved') / 'tiny-depth-anything'
    lively(depth_anything_metric(), (42, 56)).save_pretrained(folder)
    (folder / 'preprocessor_config.json').write_text(json.dumps(PROCESSOR))
    return folder


def test_folder_becomes_files_and_a_card(saved, tmp_path, capsys, rtx_plan):
    out = tmp_path / 'dav2.onnx'
    assert main(['export', '--hf', str(saved), '--licence', 'Apache-2.0', '--out', str(out),
                 '--camera', '640x480', '--note', 'a test', '--fp16']) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert 'DepthAnythingForDepthEstimation: input 70x56, output depth at 70x56' in printed
    card = ModelCard.load(out)
    assert card.input.size_hw == (56, 70)
    assert (card.output.kind, card.output.range_m) == ('depth', (0.001, 20.0))
    assert list(card.precisions) == ['fp32', 'fp16']
    assert card.provenance['source'] == 'tiny-depth-anything'
    assert card.provenance['camera_hw'] == [480, 640]
    assert str(saved.parent) not in json.dumps(card.to_dict())
    assert lint(card.verify_file('fp32'), batches=parity_batches((56, 70))) == ()
    assert rtx_plan(card.verify_file('fp32')) > 0
    half = card.verify_file('fp16')
    assert 1e-6 < card.provenance['fp16']['parity_mean_rel'] < 0.005
    assert lint(half, batches=parity_batches((56, 70))) == ()
    assert rtx_plan(half) > 0
    network, _ = load(str(saved), camera_hw=(480, 640))
    picture = parity_pictures((56, 70))[0]
    with torch.inference_mode():
        expected = ImageToDepth(network)(torch.from_numpy(picture[None])).numpy()[0, 0]
    np.testing.assert_allclose(run_file(out, picture), expected, rtol=1e-3)


def test_id_that_is_not_in_the_cache_is_not_fetched(tmp_path, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError('the network was asked')

    monkeypatch.setattr('socket.socket.connect', never)
    words = ['export', '--hf', 'nobody/no-such-depth-model', '--licence', 'MIT', '--out',
             str(tmp_path / 'x.onnx')]  # fmt: skip
    assert main(words) == 1
    error = capsys.readouterr().err
    assert 'not whole in the local cache' in error
    assert 'add --download' in error
    assert 'Traceback' not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('words', 'status', 'text'),
    [
        (['--hf', 'x/y'], 2, '--licence'),
        (['run.ckpt', '--hf', 'x/y', '--licence', 'MIT'], 2, 'either a checkpoint or --hf'),
        ([], 2, 'either a checkpoint or --hf'),
        (['--hf', './absent', '--licence', 'MIT'], 1, 'no such folder'),
        (['--hf', '.', '--licence', 'MIT'], 1, 'no config.json'),
        (['--hf', 'x/y', '--camera', '640'], 2, 'WIDTHxHEIGHT'),
    ],
)
def test_wrong_words_are_explained(words, status, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['export', *words, '--out', 'x.onnx']) == status
    assert text in capsys.readouterr().err


def copied(saved: Path, target: Path) -> Path:
    target.mkdir()
    for path in saved.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_incomplete_folders_are_refused(saved, tmp_path):
    bare = copied(saved, tmp_path / 'bare')
    (bare / 'preprocessor_config.json').unlink()
    with pytest.raises(ExportError, match='save the processor there too'):
        load(str(bare))
    lacking = copied(saved, tmp_path / 'lacking')
    safetensors = pytest.importorskip('safetensors.torch')
    weights = safetensors.load_file(lacking / 'model.safetensors')
    weights.pop('head.conv1.weight')
    safetensors.save_file(weights, lacking / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ExportError, match=r'lack 1 tensors \(head\.conv1\.weight'):
        load(str(lacking))
    with pytest.raises(ExportError, match=r'does not run at 8x8'):
        load(str(saved), size_hw=(8, 8))
    (lacking / 'config.json').write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ExportError, match='cannot open it'):
        load(str(lacking))
