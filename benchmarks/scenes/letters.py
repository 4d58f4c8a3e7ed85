"""Scenes of 48 x 48 pixels in colour: one letter or figure in a warm colour among others in cold colours.

The class is the character in the warm colour (red to yellow). The others (green to blue) and a coloured texture
distract. The characters come from fonts that matplotlib ships, so this file and matplotlib are enough to make the same
scenes again.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.scenes.drawing import placed, texture, uniform

SIDE, GLYPH = 48, 32
CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Characters that look alike (O and 0, I and 1) are left out."""
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
)
OCTAVES = (3, 6, 12)
OTHERS = 3
"""Largest number of distracting characters."""
EASY_SIZE, HARD_SIZE = (32.0, 46.0), (15.0, 26.0)
"""Smallest and largest side of a character in pixels, at difficulty 0 and at difficulty 1."""
WARM, COLD = (0.0, 0.14), (0.30, 0.68)
"""Ranges of hues."""


@dataclass(frozen=True)
class Glyphs:
    """Drawn characters: images (fonts, characters, 1, 32, 32) in [0, 1]."""

    images: Tensor

    def to(self, device: torch.device) -> "Glyphs":
        return Glyphs(self.images.to(device))


@cache
def glyphs() -> Glyphs:
    """Return all characters in all fonts, each as large as its square allows."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = [[_glyph(folder / f"{font}.ttf", character) for character in CHARACTERS] for font in FONTS]
    return Glyphs(torch.from_numpy(np.array(drawn, dtype=np.float32) / 255).unsqueeze(2))


def _glyph(font: Path, character: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    letters = ImageFont.truetype(str(font), 28)
    picture = Image.new("L", (GLYPH, GLYPH))
    ImageDraw.Draw(picture).text((GLYPH / 2, GLYPH / 2), character, fill=255, font=letters, anchor="mm")
    return np.asarray(picture)


def scenes(drawn: Glyphs, count: int, difficulty: Tensor | float, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` scenes, uint8 (count, 48, 48, 3), and their labels.

    difficulty: one number in [0, 1], or one for each scene, (count,).
    """
    device = drawn.images.device
    draw = torch.Generator(device).manual_seed(seed)
    hard = torch.as_tensor(difficulty, dtype=torch.float32, device=device).expand(count)
    scene = _background(count, hard, draw)
    labels = torch.randint(len(CHARACTERS), (count,), generator=draw, device=device)
    for place in range(OTHERS):  # the wanted character is drawn last, so that no other one hides it
        there = (uniform((count,), draw) < hard * (1 - 0.25 * place)).float()
        other = torch.randint(len(CHARACTERS), (count,), generator=draw, device=device)
        scene = _with(scene, drawn, other, COLD, hard=hard, there=there, draw=draw)
    scene = _with(scene, drawn, labels, WARM, hard=hard, there=torch.ones_like(hard), draw=draw)
    scene = scene + 0.05 * hard[:, None, None, None] * torch.randn(scene.shape, generator=draw, device=device)
    pixels = (scene.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1), labels


def _with(
    scene: Tensor,
    drawn: Glyphs,
    characters: Tensor,
    hues: tuple[float, float],
    *,
    hard: Tensor,
    there: Tensor,
    draw: torch.Generator,
) -> Tensor:
    """Return the scenes (n, 3, 48, 48) with one more character each, in a colour of these hues.

    there: (n,), 1 or 0: whether the scene gets the character.
    """
    count = len(scene)
    fonts = torch.randint(len(FONTS), (count,), generator=draw, device=scene.device)
    low, high = ((1 - hard) * easy + hard * tough for easy, tough in zip(EASY_SIZE, HARD_SIZE, strict=True))
    size = low + (high - low) * uniform((count,), draw)
    ink = placed(drawn.images[fonts, characters], SIDE, size, draw) * there[:, None, None, None]
    hue = hues[0] + (hues[1] - hues[0]) * uniform((count,), draw)
    colour = _rgb(hue, 0.7 + 0.3 * uniform((count,), draw), 0.7 + 0.3 * uniform((count,), draw))
    return scene * (1 - ink) + colour[:, :, None, None] * ink


def _background(count: int, hard: Tensor, draw: torch.Generator) -> Tensor:
    """Return textures between two random dull colours, (n, 3, 48, 48). Easy scenes are darker."""
    two = [
        _rgb(uniform((count,), draw), 0.5 * uniform((count,), draw), 0.7 * uniform((count,), draw)) for _ in range(2)
    ]
    share = texture(count, SIDE, OCTAVES, draw)
    mixed = two[0][:, :, None, None] * share + two[1][:, :, None, None] * (1 - share)
    return mixed * hard[:, None, None, None]


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Convert colours to (n, 3) in [0, 1]. hue, saturation, value: (n,), in [0, 1]."""
    steps = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    k = (steps + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))
