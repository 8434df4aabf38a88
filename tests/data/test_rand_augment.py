"""RandAugment of batches against torchvision's of single images."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torchvision.transforms import v2

from debiasbench.data.augment import augmented, augments, to_input
from debiasbench.data.rand_augment import rand_augmented
from debiasbench.recipe import Recipe


def seeded(seed=0):
    """A generator."""
    return torch.Generator().manual_seed(seed)


def picture(height=28, width=28):
    """uint8 (3, H, W): a smooth image of all grey levels, which no two operations change alike."""
    coarse = torch.rand(1, 3, 5, 5, generator=seeded())
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    return smooth.mul(220).add(10).clamp(0, 255).to(torch.uint8)


def outcomes(images):
    """How often each different image is there: images uint8 (N, C, H, W)."""
    found = {}
    for image in images:
        key = image.numpy().tobytes()
        found[key] = found.get(key, 0) + 1
    return found


def apart(one, other):
    """The largest difference of two images, in grey levels."""
    one, other = (np.frombuffer(image, dtype=np.uint8).astype(int) for image in (one, other))
    return abs(one - other).max()


@pytest.mark.parametrize(("magnitude", "height", "width"), [(9, 28, 28), (17, 20, 33), (30, 40, 25)])
def test_one_operation_gives_what_torchvisions_gives(magnitude, height, width):
    """All of its outcomes, nothing else, and each as often."""
    image = picture(height, width)
    transform = v2.RandAugment(num_ops=1, magnitude=magnitude)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = outcomes(transform(image) for _ in range(250))
    batch = image.float().div(255).expand(2800, -1, -1, -1)
    ours = outcomes(rand_augmented(batch, 1, magnitude, seeded()).mul(255).round().to(torch.uint8))
    assert len(ours) == len(theirs) == 23  # nine operations in two directions, and five in one
    nearest = {one: min(theirs, key=lambda other: apart(one, other)) for one in ours}
    assert len(set(nearest.values())) == 23
    for pair in nearest.items():  # a factor of another last digit rounds a few pixels to the next grey level
        assert apart(*pair) <= 1
    assert chisquare(sorted(ours.values()), [100] * 18 + [200] * 5).pvalue > 1e-4


def test_each_image_has_operations_of_its_own():
    """Two one after the other: more outcomes than any of them gives, equal for equal generators."""
    batch = picture().float().div(255).expand(600, -1, -1, -1)
    first, again, other = (rand_augmented(batch, 2, 9, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(outcomes(first.mul(255).round().to(torch.uint8))) > 150
    assert first.dtype == batch.dtype
    assert 0 <= float(first.min()) < float(first.max()) <= 1


def test_images_stay_in_their_places():
    """Where nothing but the grey level tells images apart, and no operation reaches it, they come back in order."""
    levels = torch.arange(100, 156)  # a constant image is left alone, or becomes another grey
    batch = (levels.float() / 255)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    kept = rand_augmented(batch, 1, 1, seeded())[:, 0, 4, 4].mul(255).round()
    assert float((kept - levels).abs().median()) <= 3
    assert not torch.equal(kept, levels)


def test_the_recipe_augments_training_images_alone():
    """After the other operations and before normalisation; evaluation is without."""
    images = picture().expand(64, -1, -1, -1)
    recipe = Recipe(rand_augment=2, mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = (rand_augmented(images.float() / 255, 2, 9, seeded()) - 0.5) / 0.25
    torch.testing.assert_close(augmented(images, recipe, seeded()), expected)
    assert torch.equal(to_input(images, recipe), to_input(images, recipe.replace(rand_augment=0)))
    assert torch.equal(augmented(images, recipe.replace(augment=False), seeded()), to_input(images, recipe))
    assert augments(recipe)
    assert not augments(recipe.replace(rand_augment=0))
