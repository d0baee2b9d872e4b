"""Made scenes for a multi-camera detector: coloured cuboids on a plane that move past a ring of cameras, drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latprune.argument_rules import check_flag, check_number, check_whole
from latprune.extras import importing
from latprune.zoo.image_arguments import image_size
from latprune.zoo.loading import IMAGENET_NORMALISATION, Normalisation

__all__ = ["SCENE_CLASSES", "MadeScenes", "SceneKind"]

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneKind:
    """A class of objects: ``size`` is width, length and height in metres, ``speed`` the highest in metres a second, ``colour`` RGB."""

    name: str
    size: tuple[float, float, float]
    speed: float
    colour: tuple[int, int, int]


SCENE_CLASSES = (
    SceneKind(name="car", size=(1.9, 4.4, 1.6), speed=8.0, colour=(200, 40, 40)),
    SceneKind(name="truck", size=(2.6, 7.5, 3.2), speed=6.0, colour=(50, 60, 210)),
    SceneKind(name="pedestrian", size=(0.7, 0.7, 1.75), speed=1.5, colour=(230, 200, 50)),
    SceneKind(name="barrier", size=(0.6, 2.4, 1.0), speed=0.0, colour=(40, 190, 90)),
)
"""What there is in made scenes, by label."""

_EYE = 1.6
"""Height of the cameras, metres."""
_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))
_SHADES = (0.75, 1.0, 0.85, 0.85, 0.65, 1.0)
_NEAR = 0.2


class MadeScenes:
    """Clips of a ring of cameras that stand still, as batches ``((images, places), {"boxes", "labels"})``.

    ``images`` are ``(n, frames, cameras, 3, h, w)``; ``places`` ``(n, tokens, 3)`` the direction (forward, left, up; of length 1) that each
    place of the network's feature map looks in, camera by camera; ``boxes`` ``(n, frames, most, 9)``: centre x, y, z, width, length, height
    (metres), yaw (radians), velocity x, y (metres a second); ``labels`` ``(n, frames, most)``, -1 where there is no object. Everything
    follows from ``seed``: the same arguments give the same scenes, and another ``first`` gives others, such as a test set.

    Args:
        count: Scenes.
        frames: Frames of a clip.
        size: Height and width of an image.
        cameras: Cameras of the ring, at least 3; together they see all around.
        stride: Pixels of an image for each place of the feature map.
        most: Objects of a scene at most.
        reach: Largest distance of an object's centre at the start, metres.
        seconds: Between two frames.
        batch_size: Clips per batch.
        shuffle: New order each epoch.
        first: Number of the first scene.
        seed: Of everything.
        normalisation: Applied to each batch.

    Raises:
        MissingExtraError: Pillow, which draws, is not installed.
        InvalidArgumentError: An argument breaks its rule.
    """

    def __init__(
        self,
        count: int,
        *,
        frames: int = 3,
        size: tuple[int, int] = (64, 96),
        cameras: int = 4,
        stride: int = 32,
        most: int = 6,
        reach: float = 20.0,
        seconds: float = 0.5,
        batch_size: int = 4,
        shuffle: bool = False,
        first: int = 0,
        seed: int = 0,
        normalisation: Normalisation = IMAGENET_NORMALISATION,
    ) -> None:
        with importing("pillow", "images", module="PIL"):
            import PIL  # noqa: F401
        self.size = image_size(size)
        for name, value in (("count", count), ("frames", frames), ("stride", stride), ("most", most), ("batch_size", batch_size)):
            check_whole(name, value, least=1)
        check_whole("first", first, least=0)
        check_whole("seed", seed)
        check_flag("shuffle", shuffle)
        check_whole("cameras", cameras, least=3, instead=": with fewer, none could see all around")
        check_number("reach", reach, "be above 6 metres, where objects begin", 6.0, above=True)
        self.cameras, self.stride, self.reach, self.most = cameras, stride, reach, most
        self.frames, self.seconds, self.batch_size, self.shuffle, self.seed = frames, seconds, batch_size, shuffle, seed
        self.normalisation = normalisation
        self.epoch = 0
        self._scenes = [self._scene(first + number) for number in range(count)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass uses."""
        check_whole("epoch", epoch, least=0)
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self._scenes) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        yield from self.batches()

    def batches(self, start: int = 0) -> Iterator[Any]:
        """The batches of the current epoch from index ``start`` on."""
        count, epoch = len(self._scenes), self.epoch
        order = np.random.default_rng((self.seed & 0xFFFFFFFF, epoch, 1 << 20)).permutation(count) if self.shuffle else np.arange(count)
        for index in range(start, len(self)):
            chosen = [self._scenes[k] for k in order[index * self.batch_size : (index + 1) * self.batch_size]]
            pixels = torch.stack([scene[0] for scene in chosen])
            images = self.normalisation(pixels.flatten(0, 2)).reshape(pixels.shape)
            places = self.places().expand(len(chosen), -1, -1)
            yield (images, places), {"boxes": torch.stack([s[1] for s in chosen]), "labels": torch.stack([s[2] for s in chosen])}
        self.epoch = epoch + 1

    def places(self) -> Tensor:
        """``(tokens, 3)`` direction of each place of the feature map, camera by camera, row by row."""
        height, width = self.size
        rows, columns = math.ceil(height / self.stride), math.ceil(width / self.stride)
        v, u = np.meshgrid((np.arange(rows) + 0.5) * self.stride, (np.arange(columns) + 0.5) * self.stride, indexing="ij")
        rays = np.stack((np.ones(u.size), (width / 2 - u.ravel()) / self._focal, (height / 2 - v.ravel()) / self._focal), axis=1)
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        return torch.from_numpy(np.concatenate([rays @ self._turn(camera).T for camera in range(self.cameras)])).float()

    @property
    def _focal(self) -> float:
        """In pixels: the cameras' views meet without a gap."""
        return self.size[1] / 2 / math.tan(math.pi / self.cameras)

    def _turn(self, camera: int) -> Points:
        """``(3, 3)``: from a camera's directions (forward, left, up) to the scene's."""
        angle = 2 * math.pi * camera / self.cameras
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1.0]])

    def _scene(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images ``(frames, cameras, 3, h, w)`` uint8, boxes and labels of a scene."""
        random = np.random.default_rng((self.seed & 0xFFFFFFFF, number))
        count = int(random.integers(1, self.most + 1))
        objects: list[tuple[int, Points, tuple[int, ...]]] = []
        for _ in range(50 * count):
            if len(objects) == count:
                break
            label = int(random.integers(len(SCENE_CLASSES)))
            kind = SCENE_CLASSES[label]
            size = np.array(kind.size) * random.uniform(0.85, 1.15)
            distance, angle, yaw = random.uniform(5.0, self.reach), random.uniform(-math.pi, math.pi), random.uniform(-math.pi, math.pi)
            speed = random.uniform(0.0, kind.speed)
            centre = (distance * math.cos(angle), distance * math.sin(angle), size[2] / 2)
            box = np.array([*centre, *size, yaw, speed * math.cos(yaw), speed * math.sin(yaw)])
            if any(np.hypot(*(box[:2] - other[:2])) < (size[1] + other[4]) / 2 for _, other, _ in objects):
                continue
            colour = tuple(int(np.clip(c + random.integers(-25, 26), 0, 255)) for c in kind.colour)
            objects.append((label, box, colour))
        boxes = torch.zeros(self.frames, self.most, 9)
        labels = torch.full((self.frames, self.most), -1, dtype=torch.long)
        shots = []
        ground = random.integers(90, 140)
        for frame in range(self.frames):
            now = []
            for place, (label, box, colour) in enumerate(objects):
                moved = box.copy()
                moved[:2] += box[7:9] * frame * self.seconds
                boxes[frame, place], labels[frame, place] = torch.from_numpy(moved), label
                now.append((moved, colour))
            for camera in range(self.cameras):
                noise = random.normal(0.0, 4.0, (*self.size, 1))
                shots.append(np.clip(self._drawn(camera, now, int(ground)) + noise, 0, 255).astype(np.uint8).transpose(2, 0, 1))
        images = torch.from_numpy(np.stack(shots)).reshape(self.frames, self.cameras, 3, *self.size)
        return images, boxes, labels

    def _drawn(self, camera: int, objects: list[tuple[Points, tuple[int, ...]]], ground: int) -> npt.NDArray[np.float64]:
        """``(h, w, 3)``: what a camera sees of the objects, the farther ones first."""
        from PIL import Image, ImageDraw

        height, width = self.size
        image = Image.new("RGB", (width, height), (150, 180, 220))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, height // 2, width, height), fill=(ground, ground, ground))
        faces = []
        for box, colour in objects:
            corners = (_corners(box) - np.array([0, 0, _EYE])) @ self._turn(camera)
            for face, shade in zip(_FACES, _SHADES, strict=True):
                points = _in_front(corners[list(face)])
                if len(points) >= 3:
                    faces.append((float(np.linalg.norm(points.mean(axis=0))), points, tuple(int(shade * c) for c in colour)))
        for _, points, colour in sorted(faces, key=lambda face: -face[0]):
            u, v = width / 2 - self._focal * points[:, 1] / points[:, 0], height / 2 - self._focal * points[:, 2] / points[:, 0]
            draw.polygon([(float(a), float(b)) for a, b in zip(u, v, strict=True)], fill=colour)
        return np.asarray(image, dtype=np.float64)


def _corners(box: Points) -> Points:
    """``(8, 3)`` corners of a cuboid on the plane."""
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    local = signs * np.array([box[4], box[3], box[5]])  # length along the heading, width across
    turn = np.array([[math.cos(box[6]), -math.sin(box[6]), 0], [math.sin(box[6]), math.cos(box[6]), 0], [0, 0, 1.0]])
    corners: Points = local @ turn.T + box[:3]
    return corners


def _in_front(points: Points) -> Points:
    """A face cut at a plane before the camera."""
    kept = []
    for here, after in zip(points, np.roll(points, -1, axis=0), strict=True):
        if here[0] >= _NEAR:
            kept.append(here)
        if (here[0] >= _NEAR) != (after[0] >= _NEAR):
            kept.append(here + (after - here) * (_NEAR - here[0]) / (after[0] - here[0]))
    return np.array(kept).reshape(-1, 3)
