"""RandAugment: plain training with strong augmentation (Cubuk, Zoph, Shlens, Le; NeurIPS 2020).

One network is trained with cross-entropy. To each image, N of fourteen operations are applied, drawn anew each time:
shears, translations, rotation, brightness, saturation, contrast, sharpness, posterize, solarize, autocontrast,
equalize, or no change. They come after the dataset's own augmentation. The method knows nothing about the bias. Its
effect depends on whether the operations change what the bias consists of: some of them change a colour, but hardly any
changes a background or an age.

Operations and ranges are torchvision's. Torchvision draws operations for a whole batch; here each image has its own.
N = 2 and magnitude 9 are the paper's values for ImageNet and torchvision's defaults; they are not tuned here. In the
comparison of NH-Fair (ICLR 2026) it is the best method once it is tuned, and ahead of most methods that are made
against a bias. Expected on cmnist5k: docs/reproduction.md.
"""

from debiasbench.errors import BenchmarkError
from debiasbench.losses import mean_cross_entropy
from debiasbench.methods import Method, Predict, Task, between
from debiasbench.recipe import Recipe
from debiasbench.search import whole


class RandAugment(Method):
    """Cross-entropy on strongly augmented images."""

    name = "randaugment"
    display = "RandAugment"
    inputs = ("images",)
    citation = """@inproceedings{cubuk2020randaugment,
  title={RandAugment: Practical Automated Data Augmentation with a Reduced Search Space},
  author={Cubuk, Ekin D and Zoph, Barret and Shlens, Jonathon and Le, Quoc V},
  booktitle={Advances in Neural Information Processing Systems}, year={2020}}"""

    search = {
        "operations": whole(1, 4, source="chosen here: up to twice the default"),
        "magnitude": whole(1, 20, source="chosen here: up to about twice the default"),
    }

    operations: int = between(1, 14, default=2)  # N, for each image
    magnitude: int = between(0, 30, default=9)

    def decline_recipe(self, recipe: Recipe) -> str | None:
        """Without augmentation, it would be plain training."""
        return None if recipe.augment else "it is plain training with augmentation, and the recipe has augment=false"

    def fit(self, task: Task) -> Predict:
        """One network, one stage, with RandAugment added to the recipe."""
        if not task.recipe.augment:
            raise BenchmarkError("randaugment is plain training with augmentation: it cannot go with augment=false.")
        recipe = task.recipe.replace(rand_augment=self.operations, rand_magnitude=self.magnitude)
        net = task.new_net()
        task.train(net, mean_cross_entropy, recipe=recipe, predict=net)
        return net
