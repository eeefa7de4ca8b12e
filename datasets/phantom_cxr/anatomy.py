"""The healthy chest of the phantom: contours in millimetres, drawn as thicknesses along the beam.

Side -1 is the patient's right (the left of the picture), +1 the patient's left.
"""

import numpy as np

from .geometry import Canvas, band, ellipse, smoothstep, spline
from .subject import Patient, Pose

# Linear attenuation per millimetre near 70 keV, about the mean energy of a filtered 110-120 kVp
# beam: mass attenuation (NISTIR 5632, Hubbell and Seltzer) times density. Water 0.193 cm2/g x 1.0,
# bone with its marrow 0.26 x 1.75, inflated lung 0.193 x 0.26, lead below its K edge 3.0 x 11.3.
MU_SOFT, MU_BONE, MU_LUNG, MU_LEAD = 0.0193, 0.0455, 0.0050, 3.4


# Inner half-width of the bony thorax, mm, by height.
_WALL_Y = np.array([-150, -142, -125, -95, -50, 0, 50, 110, 180.0])
_WALL_X = np.array([40, 66, 86, 108, 126, 136, 142, 143, 140.0])


class Chest:
    """One person's chest in one pose: contours, and maps [G, G] of thickness in mm."""

    def __init__(
        self,
        patient: Patient,
        pose: Pose,
        canvas: Canvas,
        rng: np.random.Generator,
        heart: float = 1.0,
        flat: float = 0.0,
        lower: float = 0.0,
    ):
        """`heart` scales its width, `flat` (0..1) flattens the domes, `lower` (mm) sinks them."""
        self.patient, self.pose, self.canvas = patient, pose, canvas
        self.heart_factor = heart * patient.heart * pose.heart_scale
        u = rng.random(6).tolist()
        top = 56 + 12 * u[3] + pose.inspiration + lower
        self.dome = {-1: top - 4 - 10 * u[0], 1: top + 4 + 8 * u[1]}
        self.angle = {s: self.dome[s] + (36 + 14 * u[2]) * (1 - 0.5 * flat) for s in (-1, 1)}
        self.lungs = {s: self._lung(s) for s in (-1, 1)}
        self._draw_lungs()
        self._draw_heart()
        self.body = self._body(rng)
        self.bone = self._bones(rng)
        self.marks = self._vessels(rng)

    def wall(self, y) -> np.ndarray:
        """Inner half-width of the thorax, mm, at height y."""
        p = self.patient
        return p.width * np.interp(np.asarray(y) / p.height, _WALL_Y, _WALL_X)

    def place(self, side: int, u: float, v: float) -> np.ndarray:
        """The point [2] of a lung at u (0 hilum .. 1 wall), v (0 apex .. 1 diaphragm)."""
        top = -140 * self.patient.height
        y = top + v * (self.dome[side] - top)
        inner = 32 + 25 * (v > 0.55) * (side > 0)
        return np.array([side * (inner + u * (self.wall(y) - inner)), y])

    def shift(self, points: np.ndarray, depth: float) -> np.ndarray:
        """Points moved by the patient's turn; depth 1 the front, 0 the axis, -1 the back."""
        return points + np.array([self.pose.yaw * depth, 0.0])

    def _lung(self, side: int) -> np.ndarray:
        """Outline of a lung down into the recess behind the liver; its dome is cut by `above`."""
        h = self.patient.height
        ys = np.array([-100, -60, -20, 30, 90, 150.0]) * h
        wall = np.stack([self.wall(ys), ys], 1)
        top = np.array([[14, 150], [13, 40], [18, -40], [24, -90], [31, -122], [49, -142], [70, -131]])
        points = np.concatenate([top * (1, h), wall])
        return spline(points, closed=True) * (side, 1)

    def above(self, side: int) -> np.ndarray:
        """All above one diaphragm, a polygon: medial edge, dome, costophrenic angle, wall."""
        d, a, w = self.dome[side], self.angle[side], float(self.wall(self.angle[side]))
        line = spline(
            np.array(
                [
                    [-30, d + 16],
                    [8, d + 13],
                    [40, d + 2],
                    [0.5 * w, d],
                    [0.72 * w, d + 0.14 * (a - d)],
                    [0.88 * w, d + 0.5 * (a - d)],
                    [w, a],
                    [w + 30, a + 30],
                ]
            )
        )
        return np.concatenate([line, [[w + 30, -260], [-30, -260]]]) * (side, 1)

    def _draw_lungs(self):
        c = self.canvas
        whole = {s: c.fill(self.lungs[s]) for s in (-1, 1)}
        both = np.maximum(whole[-1], whole[1])
        self.depth_in = c.inside(both)  # mm from the pleura
        self.lung_mask = {s: whole[s] * c.fill(self.above(s)) for s in (-1, 1)}
        front_back = 0.72 * self.patient.depth * (0.62 + 0.38 * smoothstep(c.y, -140, -10))
        self.lung = c.dome(both, 48) * front_back * (self.lung_mask[-1] + self.lung_mask[1])

    def _draw_heart(self):
        """Heart and great vessels; they take the place of lung."""
        c, p, k = self.canvas, self.patient, self.heart_factor
        low = 0.5 * (self.dome[-1] + self.dome[1])
        size = 0.5 + 0.5 * k
        heart = np.array(
            [
                [-22, -62],
                [-40, -40],
                [-47, -8],
                [-36, 16],
                [20, 24],
                [66, 20],
                [83, 2],
                [80, -26],
                [62, -55],
                [40, -78],
                [20, -88],
                [0, -80],
            ],
            np.float64,
        )
        heart = (heart - (8, 20)) * (k, size) + (8, 20 + low)
        self.heart = spline(self.shift(heart, 0.6), closed=True)
        h, g = p.height, p.knob
        vessels = np.array(
            [
                [-26, -150 * h],
                [-29, -90],
                [-34, -60],
                [-34, -10],
                [-24, low - 10],
                [30, low - 5],
                [38, low - 70],
                [34 + 4 * k, -30],
                [30 + 5 * k, -44],
                [25 + 4 * g, -56],
                [26 + 12 * g, -68],
                [23 + 12 * g, -82],
                [28, -96],
                [26, -150 * h],
            ],
            np.float64,
        )
        self.mediastinum = spline(self.shift(vessels, 0.3), closed=True)
        self.heart_mask = c.fill(self.heart)
        centre = c.fill(self.mediastinum)
        t_heart = 105 * size * c.dome(self.heart_mask, 45)
        t_vessel = 100 * c.dome(centre, 18)
        self.lung = np.maximum(self.lung - np.maximum(t_heart, t_vessel), 0)
        self.lung = c.blur(self.lung, 0.9)

    def _body(self, rng: np.random.Generator) -> np.ndarray:
        """Trunk, neck, shoulders, breasts, arms: total thickness in mm."""
        c, p = self.canvas, self.patient
        wall = float(self.wall(20)) + 14 + p.fat
        high = p.height
        ys = np.array([-230, -195, -178, -165, -152, -138, -110, -60, 0, 60, 240]) * high
        wide = np.array([54, 60, 78, 118, 168, 200, 214, wall + 24, wall + 4, wall, wall + 10])
        deep = np.array(
            [105, 110, 118, 118, 120, 130, 0.8 * p.depth, p.depth, p.depth, p.depth, 1.04 * p.depth]
        )
        half = np.interp(c.y, ys, wide).astype(np.float32)
        thick = np.interp(c.y, ys, deep).astype(np.float32)
        x = np.abs(c.x)
        edge = np.clip(1 - (x / half) ** 2.6, 0, 1)
        body = thick * np.sqrt(edge)
        for s in (-1, 1):
            if p.breast > 2:
                dx = (c.x - s * 0.56 * wall) / (0.42 * wall)
                dy = (c.y - p.breast_low) / 62
                dy = np.where(dy > 0, 1.5 * dy, dy)  # the lower border is the sharp one
                body += (edge > 0) * p.breast * np.sqrt(np.clip(1 - dx * dx - dy * dy, 0, 1))
        if self.pose.arms:
            arm = np.clip(1 - ((x - wall - 42) / 38) ** 2, 0, 1) * smoothstep(c.y, -150, -80)
            body = np.maximum(body, 80 * np.sqrt(arm))
        uneven = 0.012 * c.noise(rng, 45.0) + 0.008 * c.noise(rng, 15.0)
        return c.blur(body, 2.0) * (1 + uneven)

    def _bones(self, rng: np.random.Generator) -> np.ndarray:
        """Ribs, clavicles, scapulae, humeral heads, spine and sternum: bone thickness in mm."""
        c, p = self.canvas, self.patient
        side = np.array([-1.0, 1.0])
        jitter = rng.normal(0, 1.2, (10, 2))
        rank = np.arange(10)[:, None]
        # Height at which ribs 1..10 leave the spine, [10, 2].
        first = (-152 + 23.6 * rank) * p.height + jitter
        drop = np.broadcast_to(p.rib_drop * (0.45 + 0.11 * np.minimum(rank, 5)), (10, 2))
        reach = self.wall(first + drop / 2) + 3
        # A rib is a tilted ring seen from the front: t is 0 at the spine, 90 degrees at the wall.
        t = np.linspace(np.where(rank < 2, 0.12, 0.05), 1.0, 23, axis=-1)
        t = t * np.deg2rad(np.where(rank < 7, 130, 108))[..., None]
        x = side[:, None] * reach[..., None] * np.sin(t) ** 0.9 - self.pose.yaw * np.cos(t)
        y = first[..., None] + drop[..., None] * (1 - np.cos(t)) / 2 - 5 * np.sin(2 * t)
        y = y + (0.4 * np.exp(-rank / 1.5))[..., None] * np.abs(x)  # the upper ribs slope most
        line = np.stack([x, y], -1)
        width = p.rib_width * np.interp(t, [0, 0.8, 1.6, 2.2], [0.8, 1.0, 0.95, 1.3])
        width = np.broadcast_to(width, line.shape[:-1])
        bone = np.zeros((c.grid, c.grid), np.float32)
        for part, shell, marrow in ((slice(0, 15), 11.0, 5.5), (slice(14, 23), 8.0, 3.5)):
            ribs = line[:, :, part].reshape(20, -1, 2)
            wide = width[:, :, part].reshape(20, -1)
            bone += shell * c.fill(*band(ribs, wide)) - marrow * c.fill(*band(ribs, wide - 3.2))
        for s in (-1, 1):
            bone += self._shoulder(s, rng.normal(-14, 7))
        return self._spine(bone) * p.bone

    def _shoulder(self, s: int, tilt: float) -> np.ndarray:
        """Clavicle (its outer end raised by -tilt mm), scapula and upper arm of one side."""
        c, mirror = self.canvas, (s, self.patient.height)
        out = np.array([self.pose.scapula - 12, 0])
        clavicle = np.array([[16, -104], [48, -112], [95, -118 + tilt], [148, -124 + 1.6 * tilt]])
        clavicle = spline(self.shift(clavicle * mirror, 0.7))
        bone = 13 * c.fill(band(clavicle, 11.0)) - 5.5 * c.fill(band(clavicle, 7.0))
        blade = np.array(
            [[98, -120], [150, -128], [168, -112], [150, -70], [120, -5], [108, 5], [100, -20], [96, -80]]
        )
        blade = spline((blade + out) * mirror, closed=True)
        ridge = (np.array([[104, -92], [140, -118], [172, -132]]) + out) * mirror
        bone += 3.5 * c.fill(blade) + 7 * c.stroke([np.concatenate([blade, blade[:1]])], 2.2)
        bone += 7 * c.fill(band(ridge, 6.0))
        x = 176 + 0.3 * self.pose.scapula
        elbow = [x + 22, 34] if self.pose.arms else [x + 70, -46]
        head = ellipse(s * x, -116 * mirror[1], 22, 24)
        bone += 16 * c.fill(head, band(np.array([[x, -106], elbow]) * mirror, 21.0))
        return bone

    def _spine(self, bone: np.ndarray) -> np.ndarray:
        """Adds vertebrae (bodies, discs, pedicles, spinous processes) and the sternum's edge."""
        c, p = self.canvas, self.patient
        line = p.scoliosis * np.sin((c.y + 150) * (np.pi / 300)) - 0.5 * self.pose.yaw
        x = c.x - line
        half = 15 + 0.022 * (c.y + 150)
        column = np.clip(1 - (x / half) ** 2, 0, 1)
        phase = (c.y + 200) / (22 * p.height) + (c.y + 200) ** 2 * 7e-5
        wave = np.cos(2 * np.pi * phase)
        bone = bone + column * (7 + 6 * smoothstep(-wave, -0.8, 0.2))
        for s in (-1, 1):
            bone += 5 * np.exp(-(((x - s * 0.62 * half) / 3.2) ** 2)) * np.clip(wave, 0, 1) ** 2
        bone += 7 * np.exp(-((x / 3.0) ** 2)) * np.clip(-wave, 0, 1)
        manubrium = (np.abs(c.x - self.pose.yaw) < 16) & (c.y > -100 * p.height) & (c.y < 20)
        return bone + c.blur(3.0 * manubrium.astype(np.float32), 2.5)

    def _vessels(self, rng: np.random.Generator) -> np.ndarray:
        """Pulmonary vessels branching from each hilum: soft tissue in mm."""
        c, p = self.canvas, self.patient
        total = np.zeros((c.grid, c.grid), np.float32)
        for s in (-1, 1):
            hilum = np.array([s * 36 + 0.3 * self.pose.yaw, -22 - 8 * (s > 0)])
            trunk = np.linspace(-1.35, 1.5, 13) + rng.normal(0, 0.14, 13)
            length = (75 + 50 * np.abs(np.sin(trunk))) * rng.uniform(0.7, 1.1, 13)
            origin = hilum + np.stack([rng.normal(0, 3, 13), 14 * np.sin(trunk) + 4], 1)
            first = _paths(rng, origin, trunk, length / 8)
            at = rng.integers(1, 7, (13, 5))
            start = np.take_along_axis(first, at[..., None], 1).reshape(-1, 2)
            turn = rng.choice([-1, 1], (13, 5)) * rng.uniform(0.3, 0.8, (13, 5))
            fork = (trunk[:, None] + turn).ravel()
            second = _paths(rng, start, fork, np.repeat(length, 5) / 8 * rng.uniform(0.3, 0.65, 65))
            at = rng.integers(2, 8, (65, 2))
            start = np.take_along_axis(second, at[..., None], 1).reshape(-1, 2)
            fork = np.repeat(fork, 2) + rng.choice([-1, 1], 130) * rng.uniform(0.3, 0.9, 130)
            third = _paths(rng, start, fork, rng.uniform(2.0, 5.0, 130))
            for group in (first, second, third):  # drawn rightwards; mirrored about the hilum
                group[..., 0] = hilum[0] + s * (group[..., 0] - hilum[0])
            total += 9.0 * c.blur(c.stroke(first[:, :4], 6.5), 1.2)
            total += 6.0 * c.stroke(first[:, 3:6], 3.8) + 3.6 * c.stroke(first[:, 5:], 2.2)
            total += 4.0 * c.stroke(second[:, :4], 2.6) + 2.4 * c.stroke(second[:, 3:], 1.6)
            total += 1.6 * c.stroke(third, 1.2)
            knot = c.fill(ellipse(hilum[0] - s * 2, hilum[1] + 6, 10, 24, 12 * s))
            total += 22 * c.blur(knot, 4.5)
        fine = c.noise(rng, 2.5)
        fine = fine - c.blur(fine, 5.0)
        return p.vessels * (2.0 * c.blur(total, 0.6) + 1.3 * fine + 1.6 * c.noise(rng, 9.0))


def _paths(rng, start: np.ndarray, angle: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Random-walk lines [N, 9, 2] from start [N, 2] at `angle` (0 lateral, down positive)."""
    n = len(start)
    heading = angle[:, None] + np.cumsum(rng.normal(0, 0.2, (n, 8)), 1)
    move = np.stack([np.cos(heading), np.sin(heading)], -1) * np.reshape(step, (n, 1, 1))
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(move, 1)], 1)
