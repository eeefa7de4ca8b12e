"""From thicknesses to the 8-bit picture: primary beam, scatter, blur, noise, response, display."""

import cv2
import numpy as np

from .geometry import FIELD_MM, Canvas, spline


def devices(canvas: Canvas, view: str, rng: np.random.Generator) -> np.ndarray:
    """Attenuation [G, G] of wires, electrodes, tubes and lines, whatever the findings."""
    out = np.zeros((canvas.grid, canvas.grid), np.float32)
    ap = view == 'AP'
    if rng.random() < (0.45 if ap else 0.12):  # electrodes with their leads
        for _ in range(int(rng.integers(1, 5))):
            x, y = rng.uniform(-120, 120), rng.uniform(-110, 60)
            end = np.array([np.sign(x) * rng.uniform(60, 210), rng.uniform(60, 200)])
            bend = np.array([x, y]) * 0.5 + end * 0.5 + rng.normal(0, 30, 2)
            out += 0.35 * canvas.stroke([spline(np.array([[x, y], bend, end]))], 1.4)
            px = canvas.pixels(np.array([x, y]))
            cv2.circle(out, tuple(map(int, px)), int(5 * canvas.scale * 16), 0.6, -1, cv2.LINE_8, 4)
    if rng.random() < (0.35 if ap else 0.05):  # tracheal or gastric tube
        x, stop = rng.normal(0, 4), rng.uniform(-60, 120)
        tube = spline(np.array([[x, -210], [x + rng.normal(0, 6), -110], [rng.normal(2, 5), stop]]))
        out += 0.22 * canvas.stroke([tube + (2.5, 0), tube - (2.5, 0)], 1.2)
    if rng.random() < (0.3 if ap else 0.08):  # central line
        s = rng.choice([-1, 1])
        start = [s * rng.uniform(60, 130), -150]
        line = spline(np.array([start, [s * 35, -100], [-18, -70], [-20, -25]]))
        out += 0.35 * canvas.stroke([line], 1.8)
    if rng.random() < 0.06:  # pacemaker
        s = rng.choice([-1, 1], p=(0.2, 0.8))
        box = np.array([s * rng.uniform(85, 110), rng.uniform(-95, -70)])
        t = np.linspace(0, 2 * np.pi, 24)
        out += 1.6 * canvas.fill(box + np.stack([20 * np.cos(t), 16 * np.sin(t)], 1))
        lead = spline(np.array([box, [s * 40, -100], [-20, -60], [-18, 10], [35, 55]]))
        out += 0.6 * canvas.stroke([lead], 1.6)
    return out


def markers(grid: int, view: str, rng: np.random.Generator) -> np.ndarray:
    """Lead letters [G, G] in mm of lead: the side, sometimes 'AP' or 'PORTABLE'."""
    out = np.zeros((grid, grid), np.uint8)
    k = grid / 256
    u = rng.random(8)
    left = u[0] < 0.6  # the letter L stands at the right edge of the picture, R at the left
    x = (222 + 18 * u[1]) if left else (6 + 16 * u[1])
    where = (int(x * k), int((22 + 60 * u[2]) * k))
    if u[3] < 0.9:
        _text(out, 'L' if left else 'R', where, (0.45 + 0.3 * u[4]) * k)
    if view == 'AP' and u[5] < 0.6:
        word = 'PORTABLE' if u[6] < 0.5 else 'AP'
        place = (int((6 if not left else 226 if word == 'AP' else 196) * k), where[1] + int(14 * k))
        _text(out, word, place, 0.26 * k)
    return out * np.float32(1.2 / 255)


def _text(out: np.ndarray, word: str, where: tuple[int, int], scale: float) -> None:
    thick = max(1, round(3 * scale))
    cv2.putText(out, word, where, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)


def expose(depth: np.ndarray, canvas: Canvas, view: str, rng: np.random.Generator) -> np.ndarray:
    """Optical depth [G, G] -> picture in 0..1 (dense = bright).

    Beer-Lambert gives the primary beam P; scatter is a wide blur of P times a scatter-to-primary
    ratio; the focal spot and the detector blur the sum; quantum noise is Gaussian with variance
    proportional to the count; the response is logarithmic and the display a window with a gamma and
    a toe-and-shoulder curve, as the makers of digital detectors apply them.
    """
    u = rng.random(10).tolist()
    primary = np.exp(-depth)
    ratio = (0.5 + 0.6 * u[0]) if view == 'AP' else (0.2 + 0.4 * u[0])
    beam = primary + ratio * canvas.blur(primary, 28.0)
    beam = canvas.blur(beam, 0.4 + (0.6 if view == 'AP' else 0.4) * u[1])
    quanta = 10 ** (4.2 + 0.9 * u[2])  # per pixel of the native grid in the open beam
    noise = canvas.noise(rng, 0.1)
    beam = beam + noise * np.sqrt(beam / quanta)
    film = -np.log(np.maximum(beam, 1e-4))
    heel = rng.normal(0, 0.08, 2).tolist()  # the beam is not even over the field
    film += heel[0] / FIELD_MM * 2 * canvas.x + heel[1] / FIELD_MM * 2 * canvas.y
    if u[3] < 0.6:  # some makers flatten the picture and sharpen detail
        wide = canvas.blur(film, 22.0)
        detail = film - canvas.blur(film, 4.0)
        film = film - (0.1 + 0.25 * u[4]) * wide + (0.2 + 0.4 * u[5]) * detail
    low, high = np.quantile(film[::4, ::4], (0.01 + 0.05 * u[6], 0.92 + 0.07 * u[7])).tolist()
    grey = np.clip((film - low) / max(high - low, 0.2), -0.3, 1.3)
    gamma = float(np.exp(rng.normal(0.0, 0.28)))
    contrast = 3.2 + 3.0 * u[8]
    centre = 0.42 + 0.2 * (u[9] - 0.5)
    curve = 1 / (1 + np.exp(-contrast * (grey - centre)))
    ends = 1 / (1 + np.exp(-contrast * (np.array([-0.02, 1.12]) - centre)))
    ends = ends.tolist()
    return np.clip((curve - ends[0]) / (ends[1] - ends[0]), 0, 1) ** gamma


def collimate(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keep-mask [G, G] bool of the field left open by the collimator, often all of it."""
    grid = len(picture)
    keep = np.ones((grid, grid), bool)
    u = rng.random(6)
    if u[0] < 0.3:
        edges = (np.array([0.05, 0.04, 0.06, 0.05]) * u[1:5] * grid).astype(int)
        keep[: edges[0]] = keep[grid - edges[1] :] = False
        keep[:, : edges[2]] = keep[:, grid - edges[3] :] = False
    return keep


def display(picture: np.ndarray, keep: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0..1 -> uint8 with the brightness range of the archive's export."""
    u = rng.random(2)
    top, bottom = 255 - 40 * u[0] ** 2, 14 * u[1] ** 2
    return np.where(keep, bottom + picture * (top - bottom), 0).round().astype(np.uint8)
