"""Augmentation against torchvision: per image for given parameters, in distribution for drawn ones."""

import math

import pytest
import torch
import torchvision.transforms.functional as vision
from scipy.stats import chi2_contingency, chisquare, kstest
from torchvision.transforms import RandomCrop, RandomResizedCrop, RandomRotation

from debiasbench.data import augment
from debiasbench.data.augment import augmented, crop_boxes, resample, shift_hue, to_input
from debiasbench.recipe import Recipe

OFFICIAL = Recipe(crop_scale=(0.9, 1.1), saturation=0.05, hue=0.05, rotation=10.0)
N_DRAWS = 100_000


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images(make_task):
    """uint8 (200, 3, 28, 28): coloured shapes, with full grey levels."""
    return make_task().x


@pytest.fixture(scope="module")
def boxes():
    """100,000 boxes for 28 pixels."""
    return crop_boxes(N_DRAWS, 28, 28, OFFICIAL, seeded())


@pytest.fixture(scope="module")
def vision_boxes():
    """20,000 boxes of torchvision for 28 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(3, 28, 28)
        drawn = [RandomResizedCrop.get_params(image, [0.9, 1.1], [3 / 4, 4 / 3]) for _ in range(20_000)]
    return torch.tensor(drawn)


def p_of_two_samples(ours, theirs):
    """P of a chi-square test that two samples of small integers have one distribution."""
    size = int(max(ours.max(), theirs.max())) + 1
    table = torch.stack([torch.bincount(part, minlength=size) for part in (ours, theirs)]).double()
    expected = table.sum(0) * len(theirs) / (len(ours) + len(theirs))
    table = torch.cat([table[:, expected >= 5], table[:, expected < 5].sum(1, keepdim=True)], 1)
    return chi2_contingency(table[:, table.sum(0) > 0].numpy())[1]


@pytest.mark.parametrize("column", range(4), ids=["top", "left", "height", "width"])
def test_crop_boxes_have_torchvisions_distribution(boxes, vision_boxes, column):
    """Trap 42: each number of the box is distributed as torchvision's."""
    assert p_of_two_samples(boxes[:, column], vision_boxes[:, column]) > 1e-4
    for value in range(29):
        ours = (boxes[:, column] == value).double().mean().item()
        theirs = (vision_boxes[:, column] == value).double().mean().item()
        assert abs(ours - theirs) < 0.02, value


def test_crop_boxes_have_torchvisions_joint_distribution(boxes, vision_boxes):
    """Trap 42: height, width, top and left together, as one number a box."""
    ours, theirs = (
        (((drawn[:, 2] - 20) * 9 + drawn[:, 3] - 20) * 9 + drawn[:, 0]) * 9 + drawn[:, 1]
        for drawn in (boxes, vision_boxes)
    )
    assert p_of_two_samples(ours, theirs) > 1e-4


@pytest.mark.parametrize(("size", "accepted", "fallback"), [(28, 0.16, 0.17), (56, None, 0.27)])
def test_most_crops_do_not_fit_and_that_is_kept(size, accepted, fallback):
    """Trap 42: 16 % of the draws fit, 17 % of the images (27 % at 56 pixels) fall back to the full frame."""
    # the specification's rule, drawn here one by one
    scale = 0.9 + 0.2 * torch.rand(N_DRAWS, 10, generator=seeded(1), dtype=torch.float64)
    ratio = torch.empty(N_DRAWS, 10, dtype=torch.float64)
    ratio.uniform_(math.log(3 / 4), math.log(4 / 3), generator=seeded(2)).exp_()
    width = (size**2 * scale * ratio).sqrt().round()
    height = (size**2 * scale / ratio).sqrt().round()
    fits = (width <= size) & (height <= size)
    fell_back = ~fits.any(1)
    assert accepted is None or fits.double().mean().item() == pytest.approx(accepted, abs=0.01)
    assert fell_back.double().mean().item() == pytest.approx(fallback, abs=0.01)

    drawn = crop_boxes(N_DRAWS, size, size, OFFICIAL, seeded(3))
    full = (drawn[:, 2] == size) & (drawn[:, 3] == size)
    first = fits.long().argmax(1, keepdim=True)
    drawn_full = (width.gather(1, first) == size) & (height.gather(1, first) == size)
    expected = (fell_back | drawn_full[:, 0]).double().mean().item()
    assert full.double().mean().item() == pytest.approx(expected, abs=0.008)
    assert (drawn[full][:, :2] == 0).all()


def test_full_frame_share_is_torchvisions(boxes, vision_boxes):
    """Trap 42: the fraction of images that keep the full frame."""
    ours, theirs = (
        ((drawn[:, 2] == 28) & (drawn[:, 3] == 28)).double().mean().item() for drawn in (boxes, vision_boxes)
    )
    assert ours == pytest.approx(theirs, abs=0.015)
    assert ours > 0.17


def test_boxes_lie_in_the_image_and_keep_most_of_it(boxes):
    """Trap 42: at least about 90 % of the area, and never a box that reaches beyond the image."""
    top, left, height, width = boxes.T
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert int((top + height).max()) <= 28
    assert int((left + width).max()) <= 28
    assert (height * width).min().item() > 0.87 * 28 * 28  # 0.9 before rounding to pixels
    assert p_of_two_samples(top[height == 26], left[width == 26]) > 1e-4


@pytest.mark.parametrize(("height", "width"), [(20, 60), (60, 20)])
def test_fallback_of_long_images_is_torchvisions(height, width):
    """Trap 42: where nothing fits, the central box of the nearest allowed ratio."""
    recipe = Recipe(crop_scale=(5.0, 6.0))
    torch.manual_seed(0)
    expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [5.0, 6.0], [3 / 4, 4 / 3])
    assert crop_boxes(20, height, width, recipe, seeded()).tolist() == [list(expected)] * 20


def test_crop_of_other_scales_is_torchvisions():
    """Trap 42: the usual scale (0.08, 1) on an image that is not square."""
    recipe = Recipe(crop_scale=(0.08, 1.0), crop_ratio=(0.75, 1.3333))
    ours = crop_boxes(50_000, 24, 32, recipe, seeded())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = torch.zeros(3, 24, 32)
        theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [0.75, 1.3333]) for _ in range(5000)])
    for column in range(4):
        assert p_of_two_samples(ours[:, column], theirs[:, column]) > 1e-4, column


def test_resampling_equals_crop_then_rotation(images):
    """Section 1.6: one resampling is torchvision's two, on boxes and angles as they are drawn."""
    n = 300
    image = images.repeat(2, 1, 1, 1)[:n].float() / 255
    boxes = crop_boxes(n, 28, 28, OFFICIAL, seeded(4))
    degrees = torch.empty(n).uniform_(-10, 10, generator=seeded(5))
    ours = resample(image, boxes, degrees * math.pi / 180)
    theirs = []
    for one, box, angle in zip(image, boxes.tolist(), degrees.tolist(), strict=True):
        cropped = vision.resized_crop(one, *box, [28, 28], antialias=True)
        theirs.append(vision.rotate(cropped, angle, vision.InterpolationMode.NEAREST, fill=[0.0]))
    theirs = torch.stack(theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    changed = (theirs - image).abs().amax((1, 2, 3)) > 0.01
    assert changed.double().mean() > 0.9  # so that the comparison says something


def test_resampling_equals_torchvision_for_small_boxes_and_large_angles(images):
    """Section 1.6: also where boxes enlarge a lot and the corners turn out of the frame."""
    n = 200
    image = images[:n].float() / 255
    recipe = Recipe(crop_scale=(0.08, 1.0))
    boxes = crop_boxes(n, 28, 28, recipe, seeded(6))
    degrees = torch.empty(n).uniform_(-90, 90, generator=seeded(7))
    ours = resample(image, boxes, degrees * math.pi / 180)
    for place in range(n):
        cropped = vision.resized_crop(image[place], *boxes[place].tolist(), [28, 28], antialias=True)
        theirs = vision.rotate(cropped, degrees[place].item(), vision.InterpolationMode.NEAREST, fill=[0.0])
        differing = ((ours[place] - theirs).abs().amax(0) > 1e-5).sum().item()
        assert differing <= 2, place  # a source coordinate on the edge of two pixels may round either way


def test_angles_are_uniform_between_the_limits(images, monkeypatch):
    """Section 1.6: RandomRotation(10) draws uniformly from -10 to 10 degrees, an angle a sample."""
    seen = []
    monkeypatch.setattr(augment, "resample", lambda image, boxes, angle, **_: seen.append((boxes, angle)) or image)
    for seed in range(20):
        augmented(images, OFFICIAL, seeded(seed))
    degrees = torch.cat([angle for _, angle in seen]).double() * 180 / math.pi
    assert kstest(degrees.numpy(), "uniform", args=(-10, 20)).pvalue > 1e-4
    assert degrees.unique().numel() > 0.99 * len(degrees)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [RandomRotation.get_params([-10.0, 10.0]) for _ in range(4000)]
    assert kstest(degrees.numpy(), theirs).pvalue > 1e-4
    drawn = torch.cat([boxes for boxes, _ in seen])
    assert len(drawn.unique(dim=0)) > 20  # boxes differ between samples as well


def test_hue_shift_equals_torchvisions(images):
    """Section 1.6: adjust_hue through HSV, over the whole circle."""
    n = 200
    image = torch.cat([images[: n // 2].float() / 255, torch.rand(n // 2, 3, 28, 28, generator=seeded(8))])
    turns = torch.empty(n, 1, 1, 1).uniform_(-0.5, 0.5, generator=seeded(9))
    ours = shift_hue(image, turns)
    theirs = torch.stack([vision.adjust_hue(one, by) for one, by in zip(image, turns.flatten().tolist(), strict=True)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - image).abs().mean() > 0.1


def test_hue_shift_of_pure_colours():
    """A third of a turn takes red to green, green to blue, blue to red; yellow needs no more than its tie."""
    colours = torch.eye(3)[:, :, None, None]
    turned = shift_hue(colours, torch.full((3, 1, 1, 1), 1 / 3))
    torch.testing.assert_close(turned, torch.eye(3)[[1, 2, 0]][:, :, None, None], rtol=0, atol=1e-5)
    yellow = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    opposite = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(shift_hue(yellow, torch.full((1, 1, 1, 1), 0.5)), opposite, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saturation_first", [True, False])
def test_colour_jitter_equals_one_of_torchvisions_orders(images, saturation_first, monkeypatch):
    """Section 1.6: saturation then hue, or hue then saturation, over the whole range of both.

    torchvision clamps between the two and ours only at the end: equal where nothing is cut off there, and
    elsewhere no further apart than what is cut off.
    """
    image = images.float() / 255
    n = len(image)
    factors = torch.linspace(0, 1, n)
    shifts = torch.rand(n, generator=seeded(10))
    order = torch.full((n,), 0.25 if saturation_first else 0.75)
    draws = torch.stack([factors, shifts, order]).view(3, n, 1, 1, 1)
    monkeypatch.setattr(augment.torch, "rand", lambda *_, **__: draws)
    ours = augment._colour_jitter(image, 0.05, 0.05, seeded())
    monkeypatch.undo()
    n_equal, worst, other = 0, 0.0, 0.0
    for place in range(n):
        factor, shift = 1 + 0.05 * (2 * factors[place].item() - 1), 0.05 * (2 * shifts[place].item() - 1)
        first = vision.adjust_hue(vision.adjust_saturation(image[place], factor), shift)
        second = vision.adjust_saturation(vision.adjust_hue(image[place], shift), factor)
        theirs, others = (first, second) if saturation_first else (second, first)
        unclamped = factor * image[place] + (1 - factor) * vision.rgb_to_grayscale(image[place])
        cut = (unclamped - unclamped.clamp(0, 1)).abs().amax(0) * saturation_first
        error = (ours[place] - theirs).abs().amax(0)
        assert (error <= 1e-5 + cut).all(), place
        n_equal += int((cut == 0).sum())
        worst = max(worst, error.max().item())
        other = max(other, ((ours[place] - others).abs() * (cut == 0)).max().item())
    assert n_equal > 0.5 * n * 28 * 28
    assert worst < 0.0075
    assert other > 1e-3  # the two orders differ where nothing is cut off, so that the comparison says something


def test_jitter_factors_are_uniform_and_drawn_per_sample():
    """Section 1.6: factor in [0.95, 1.05] and shift in [-0.05, 0.05], read back from a colour."""
    colour = torch.tensor([204, 51, 51], dtype=torch.uint8).view(1, 3, 1, 1).expand(4000, 3, 2, 2)
    out = augmented(colour, Recipe(saturation=0.05), seeded(11)).double()
    factor = (out[:, 0, 0, 0] - out[:, 1, 0, 0]) / 0.6
    assert kstest(factor.numpy(), "uniform", args=(0.95, 0.1)).pvalue > 1e-4
    out = augmented(colour, Recipe(hue=0.05), seeded(12)).double()
    turns = (out[:, 1, 0, 0] - out[:, 2, 0, 0]) / 0.6 / 6  # red towards yellow or towards magenta
    assert kstest(turns.numpy(), "uniform", args=(-0.05, 0.1)).pvalue > 1e-4
    assert torch.equal(out.amin((2, 3)), out.amax((2, 3)))  # one draw a sample, not a pixel


def test_both_orders_of_the_jitter_come_equally_often():
    """Section 1.6: torchvision shuffles the two for every image."""
    n = 800
    colour = torch.tensor([30, 160, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(n, 3, 1, 1)
    draws = torch.rand(3, n, generator=seeded(13))
    ours = augmented(colour, Recipe(saturation=0.2, hue=0.3), seeded(13))
    image = colour[0].float() / 255
    n_first = 0
    for place in range(n):
        factor, shift = 1 + 0.2 * (2 * draws[0, place].item() - 1), 0.3 * (2 * draws[1, place].item() - 1)
        first = vision.adjust_hue(vision.adjust_saturation(image, factor), shift)
        second = vision.adjust_saturation(vision.adjust_hue(image, shift), factor)
        errors = [(ours[place] - theirs).abs().max().item() for theirs in (first, second)]
        assert min(errors) < 1e-5, place
        n_first += errors[0] < errors[1]
    assert chisquare([n_first, n - n_first]).pvalue > 1e-4


def test_flip_gives_the_image_or_its_mirror(images):
    """RandomHorizontalFlip: each sample by itself, half of them."""
    x = images.repeat(20, 1, 1, 1)
    out = augmented(x, Recipe(flip=True), seeded(14))
    plain, mirrored = to_input(x, Recipe()), vision.hflip(to_input(x, Recipe()))
    same, flipped = ((out == other).flatten(1).all(1) for other in (plain, mirrored))
    assert (same ^ flipped).all()
    assert chisquare([int(same.sum()), int(flipped.sum())]).pvalue > 1e-4


def test_pad_crop_gives_torchvisions_outputs_equally_often():
    """RandomCrop(size, padding): exactly the windows that torchvision can return, all equally likely."""
    image = torch.arange(1, 3 * 6 * 6 + 1, dtype=torch.uint8).view(3, 6, 6)
    n, pad = 20_000, 2
    out = augmented(image.expand(n, 3, 6, 6), Recipe(pad_crop=pad), seeded(15))
    padded = vision.pad(image, [pad] * 4)
    windows = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = vision.crop(padded, top, left, 6, 6).float() / 255
            windows[window.numpy().tobytes()] = len(windows)
    seen = [windows[one.contiguous().numpy().tobytes()] for one in out]
    counts = torch.bincount(torch.tensor(seen), minlength=25)
    assert chisquare(counts.numpy()).pvalue > 1e-4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop = RandomCrop(6, padding=pad)
        theirs = {(crop(image).float() / 255).numpy().tobytes() for _ in range(500)}
    assert theirs == set(windows)


def test_grey_stays_grey_and_values_stay_in_range(images):
    """No augmentation gives colour to grey, and no value leaves [0, 1]."""
    grey = images[:, :1].expand(-1, 3, -1, -1)
    recipe = OFFICIAL.replace(flip=True, pad_crop=2, saturation=0.5, hue=0.5)
    out = augmented(grey, recipe, seeded(16))
    torch.testing.assert_close(out[:, 0], out[:, 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(out[:, 0], out[:, 2], rtol=0, atol=1e-6)
    noise = torch.randint(0, 256, (200, 3, 28, 28), generator=seeded(17), dtype=torch.uint8)
    noise[:50] = 255 * (noise[:50] > 127)
    for x in (images, noise):
        for some in (OFFICIAL, recipe):
            out = augmented(x, some, seeded(18))
            assert out.min() >= 0
            assert out.max() <= 1
            assert out.dtype == torch.float32
            assert out.is_contiguous(memory_format=torch.channels_last)


def test_input_is_scaled_and_normalised(images):
    """to_input and augmented both end as ToTensor and Normalize do."""
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    recipe = Recipe(mean=mean, std=std)
    expected = torch.stack(
        [vision.normalize(vision.to_tensor(one.permute(1, 2, 0).numpy()), mean, std) for one in images]
    )
    torch.testing.assert_close(to_input(images, recipe), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(augmented(images, recipe, seeded()), expected, rtol=0, atol=1e-5)
    plain = to_input(images, Recipe())
    assert torch.equal(plain, images.float() / 255)
    assert torch.equal(augmented(images, Recipe(), seeded()), plain)


def test_augmentation_is_a_function_of_the_generator(images):
    """Equal generators give equal images; the input and the global generator are left as they were."""
    before, state = images.clone(), torch.get_rng_state()
    outs = [augmented(images, OFFICIAL, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    twins = augmented(images[:1].expand(50, -1, -1, -1), OFFICIAL, seeded(3))
    assert len(twins.flatten(1).unique(dim=0)) == 50  # equal images of one batch are augmented differently


@pytest.mark.parametrize("shape", [(3, 40, 30), (3, 24, 24), (3, 60, 90)])
def test_resizing_on_the_device_is_torchvisions(shape):
    """Recipe size: bilinear with antialiasing, to a square, before normalisation; nothing where the size is right."""
    x = torch.randint(0, 256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(size=24, augment=False)
    expected = vision.resize(x.float() / 255, [24, 24], antialias=True)
    torch.testing.assert_close(to_input(x, recipe), expected, atol=1e-6, rtol=0)
    assert augmented(x, recipe, torch.Generator()).shape == (4, 3, 24, 24)
    assert recipe.input_shape(shape) == (3, 24, 24)


def test_a_crop_is_resized_to_the_recipes_size_in_one_resampling():
    """RandomResizedCrop(size) takes its box from the image as it is, not from a resized one."""
    x = torch.randint(0, 256, (3, 3, 30, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[2, 3, 12, 10], [0, 0, 30, 20], [5, 1, 20, 19]])
    image = x.float() / 255
    found = resample(image, boxes, torch.zeros(3), size=(48, 48))
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        expected = vision.resized_crop(
            image[row : row + 1], top, left, height, width, [48, 48], antialias=True
        )  # a crop that grows: antialiasing changes nothing
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=0)
    recipe = Recipe(size=48, crop_scale=(0.7, 1.0))
    assert augmented(x, recipe, torch.Generator().manual_seed(0)).shape == (3, 3, 48, 48)
