"""Curves in millimetres, and the grid they are drawn on.

Coordinates are millimetres in the detector plane, origin at its centre (about the seventh thoracic
vertebra), x to the right of the picture as displayed (the patient's LEFT), y downwards.
"""

import cv2
import numpy as np

FIELD_MM = 400.0  # side of the square detector field
NATIVE = 256  # every picture is drawn on at least this grid; smaller ones are area averages of it


def spline(points: np.ndarray, closed: bool = False, steps: int = 8) -> np.ndarray:
    """Catmull-Rom curve through points [N, 2] -> [M, 2]."""
    p = np.asarray(points, np.float64)
    if closed:
        p = np.concatenate([p[-1:], p, p[:2]])
    else:
        p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def band(line: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Polygons [..., 2N, 2] of a width (mm, scalar or [..., N]) around lines [..., N, 2]."""
    step = np.diff(line, axis=-2)
    inner = step[..., 1:, :] + step[..., :-1, :]
    tangent = np.concatenate([step[..., :1, :], inner, step[..., -1:, :]], -2)
    length = np.hypot(tangent[..., 0], tangent[..., 1])[..., None]
    normal = tangent[..., ::-1] * (-1, 1) / np.maximum(length, 1e-9)
    offset = normal * (np.asarray(width) / 2)[..., None]
    return np.concatenate([line + offset, (line - offset)[..., ::-1, :]], -2)


def ellipse(x: float, y: float, a: float, b: float, degrees: float = 0.0) -> np.ndarray:
    """An ellipse's contour [40, 2], half axes a and b in mm, turned by `degrees`."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    r = np.deg2rad(degrees)
    p = np.stack([a * np.cos(t), b * np.sin(t)], 1)
    return p @ np.array([[np.cos(r), np.sin(r)], [-np.sin(r), np.cos(r)]]) + (x, y)


class Canvas:
    """Draws contours given in mm onto a grid; x, y [G, G] are the patient's mm under each pixel."""

    def __init__(self, grid: int, affine: np.ndarray):
        self.grid, self.per_mm = grid, grid / FIELD_MM
        self.scale = self.per_mm * float(np.hypot(*affine[:, 0]))  # pixels per mm of the patient
        self.matrix = affine * self.per_mm
        self.matrix[:, 2] += grid / 2
        inverse = cv2.invertAffineTransform(self.matrix).astype(np.float32)
        row = np.arange(grid, dtype=np.float32) + 0.5
        self.x = inverse[0, 0] * row[None] + (inverse[0, 1] * row[:, None] + inverse[0, 2])
        self.y = inverse[1, 0] * row[None] + (inverse[1, 1] * row[:, None] + inverse[1, 2])

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """mm [..., 2] -> OpenCV fixed-point pixels with 4 fractional bits, int32 [..., 2]."""
        p = points @ self.matrix[:, :2].T + (self.matrix[:, 2] - 0.5)
        return np.rint(p * 16).astype(np.int32)

    def fill(self, *polygons: np.ndarray) -> np.ndarray:
        """Union of filled polygons, float32 [G, G] in 0..1."""
        out = np.zeros((self.grid, self.grid), np.uint8)
        for polygon in polygons:  # one by one: a single call would leave overlaps empty
            cv2.fillPoly(out, [self.pixels(polygon)], 255, cv2.LINE_AA, 4)
        return out * np.float32(1 / 255)

    def stroke(self, lines, width: float) -> np.ndarray:
        """Open lines of about `width` mm (never under a pixel), float32 [G, G] in 0..1."""
        out = np.zeros((self.grid, self.grid), np.uint8)
        thick = max(1, round(width * self.scale))
        gain = min(1.0, width * self.scale / thick)
        cv2.polylines(out, list(self.pixels(np.asarray(lines))), False, 255, thick, cv2.LINE_AA, 4)
        return out * np.float32(gain / 255)

    def blur(self, image: np.ndarray, mm: float) -> np.ndarray:
        """Gaussian blur with sigma in mm; wide ones work on a coarser grid."""
        sigma = mm * self.scale
        step = 1 << max(0, int(np.log2(max(sigma / 3, 1))))
        if step == 1:
            return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.1))
        small = cv2.resize(image, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / step)
        return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_LINEAR)

    def inside(self, mask: np.ndarray) -> np.ndarray:
        """Distance in mm from every pixel of a mask to its edge, 0 outside."""
        binary = (mask > 0.5).astype(np.uint8)
        return cv2.distanceTransform(binary, cv2.DIST_L2, 3) * np.float32(1 / self.scale)

    def noise(self, rng: np.random.Generator, mm: float) -> np.ndarray:
        """Gaussian field of unit variance, smooth over `mm`, drawn the same for every grid."""
        cells = int(np.clip(FIELD_MM / mm * 1.5, 8, NATIVE))
        field = rng.standard_normal((cells, cells), np.float32)
        if cells != self.grid:
            field = cv2.resize(field, (self.grid, self.grid), interpolation=cv2.INTER_CUBIC)
        return field

    def dome(self, mask: np.ndarray, radius: float) -> np.ndarray:
        """0 at a mask's edge, rising as a quarter circle to 1 at `radius` mm inside it."""
        return np.sqrt(1 - (1 - np.minimum(self.inside(mask) * (1 / radius), 1)) ** 2)


def smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) * (1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)
