"""The eight findings of the phantom: what each does to the chest, and exactly where.

A finding is drawn on a `Lesions`, which holds what disease adds to a healthy `Chest`. Every drawing
gets its own generator, seeded by the patient and the finding: the same lesion returns in each of
the patient's images, at the pose of that image.
"""

import numpy as np

from .anatomy import Chest
from .geometry import ellipse, smoothstep, spline

FINDINGS = (
    'Cardiomegaly',
    'Effusion',
    'Pneumothorax',
    'Nodule',
    'Mass',
    'Consolidation',
    'Emphysema',
    'Fibrosis',
)
LABELS = (*FINDINGS, 'No Finding')

# A patient is healthy or has one of four diseases: its chance, and with it that of each finding.
DISEASES = (
    (0.36, (0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00)),  # healthy
    (0.16, (0.75, 0.50, 0.10, 0.10, 0.10, 0.22, 0.10, 0.10)),  # heart failure
    (0.15, (0.14, 0.42, 0.20, 0.12, 0.10, 0.75, 0.10, 0.12)),  # infection
    (0.18, (0.12, 0.12, 0.50, 0.22, 0.16, 0.14, 0.62, 0.58)),  # chronic lung disease
    (0.15, (0.12, 0.34, 0.22, 0.60, 0.62, 0.18, 0.18, 0.14)),  # tumour
)
# These may be absent from some of the patient's images.
ACUTE = ('Effusion', 'Pneumothorax', 'Consolidation')
SMALLEST_MM2 = 60.0  # a lesion that shows less than this in the field is not labelled


def draw_findings(rng: np.random.Generator) -> np.ndarray:
    """A patient's findings, bool [8]."""
    chance = np.array([weight for weight, _ in DISEASES])
    disease = rng.choice(len(DISEASES), p=chance)
    return rng.random(8) < np.array(DISEASES[disease][1])


class Lesions:
    """Maps [G, G] of disease: `soft` mm of lung turned solid, factors on lung and markings."""

    def __init__(self, chest: Chest):
        self.chest, self.canvas = chest, chest.canvas
        shape = chest.lung.shape
        self.soft = np.zeros(shape, np.float32)
        self.density = np.ones(shape, np.float32)
        self.marks = np.ones(shape, np.float32)
        self.masks = np.zeros((8, *shape), bool)

    def add(self, finding: int, rng: np.random.Generator) -> None:
        """Draws finding number `finding` (index in FINDINGS)."""
        region = getattr(self, '_' + FINDINGS[finding].lower())(rng)
        self.masks[finding] = region

    def _field(self, side: int) -> np.ndarray:
        """Lung as seen: above the diaphragm, not behind the heart."""
        return self.chest.lung_mask[side] * (1 - self.chest.heart_mask)

    def _cardiomegaly(self, rng) -> np.ndarray:
        return self.chest.heart_mask > 0.5  # the chest was already drawn with the larger heart

    def _effusion(self, rng) -> np.ndarray:
        """Fluid that fills the costophrenic angle and climbs the wall in a meniscus."""
        c, chest = self.canvas, self.chest
        sides = [(-1,), (1,), (-1, 1)][rng.choice(3, p=(0.35, 0.35, 0.3))]
        region = np.zeros(self.soft.shape, bool)
        for side in sides:
            height = 22 + 75 * float(rng.random()) ** 1.6
            across = np.clip(c.x * (side / float(chest.wall(chest.dome[side]))), 0, 1)
            bend = 2 * across - 1
            level = chest.angle[side] - height - 26 * bend * bend * bend + 10 * (1 - across)
            depth = (c.y - level) * chest.lung_mask[side]
            fluid = smoothstep(depth, 0, 22)
            self.soft += fluid * chest.lung * 0.92
            self.marks *= 1 - fluid
            region |= (depth > 4) & (chest.lung_mask[side] > 0.5)
        return region

    def _pneumothorax(self, rng) -> np.ndarray:
        """Air between the chest wall and a lung that has drawn back towards its hilum."""
        c, chest = self.canvas, self.chest
        side = int(rng.choice([-1, 1]))
        amount = 0.10 + 0.22 * float(rng.random())
        top, low = -140 * chest.patient.height, chest.angle[side]
        lung = chest.lungs[side]
        hilum = np.array([side * 30.0, -15.0])
        upper = np.clip((low - lung[:, 1]) / (low - top), 0, 1)[:, None]
        lateral = np.clip((side * lung[:, :1] - 20) / 40, 0, 1)
        pull = amount * (0.35 + 0.9 * upper) * np.maximum(lateral, upper > 0.8)
        shrunk = hilum + (lung - hilum) * (1 - pull)
        kept = c.fill(shrunk)
        air = self._field(side) * (1 - kept)
        self.density *= 1 - air
        self.density += 0.35 * amount * kept * chest.lung_mask[side]
        self.marks *= 1 - air
        self.soft += 5.5 * c.blur(c.stroke([shrunk], 1.8), 0.5) * self._field(side)
        return (air > 0.5) & (c.inside(air) > 0)

    def _ball(self, centre, radius: float, solid: float, lobes: list[float]) -> np.ndarray:
        """A solid lump of the given radius (mm) with lobes (relative, by direction)."""
        c = self.canvas
        dx, dy = c.x - np.float32(centre[0]), c.y - np.float32(centre[1])
        turn = np.arctan2(dy, dx)
        edge = 1 + lobes[0] * np.cos(2 * turn + lobes[1]) + lobes[2] * np.cos(5 * turn + lobes[3])
        inside = 1 - (dx * dx + dy * dy) / (radius * edge) ** 2
        self.soft += 2 * radius * solid * np.sqrt(np.clip(inside, 0, 1))
        return inside > 0

    def _lumps(self, rng, count: int, low: float, high: float, solid: tuple) -> np.ndarray:
        """Lumps with radii from low to high mm; `solid`: range of density relative to water."""
        region = np.zeros(self.soft.shape, bool)
        for _ in range(count):
            side = int(rng.choice([-1, 1]))
            centre = self.chest.place(side, rng.uniform(0.25, 0.8), rng.uniform(0.15, 0.85))
            lobes = (np.array([0.10, 6.3, 0.05, 6.3]) * rng.random(4)).tolist()
            region |= self._ball(centre, rng.uniform(low, high), rng.uniform(*solid), lobes)
        return region & (self.chest.lung_mask[-1] + self.chest.lung_mask[1] > 0.5)

    def _nodule(self, rng) -> np.ndarray:
        """One to three lumps under 30 mm across, denser than water where they hold calcium."""
        return self._lumps(rng, 1 + int(rng.choice(3, p=(0.5, 0.3, 0.2))), 8.0, 14.0, (1.0, 1.5))

    def _mass(self, rng) -> np.ndarray:
        """One lump over 30 mm across."""
        return self._lumps(rng, 1, 18.0, 34.0, (0.75, 1.0))

    def _consolidation(self, rng) -> np.ndarray:
        """Airspace filled in a part of a lobe: soft edges, patchy, bronchi left open."""
        c, chest = self.canvas, self.chest
        region = np.zeros(self.soft.shape, bool)
        texture = 0.6 + 0.26 * c.noise(rng, 26.0) + 0.10 * c.noise(rng, 11.0)
        for _ in range(1 + (rng.random() < 0.35)):
            side = int(rng.choice([-1, 1]))
            centre = chest.place(side, rng.uniform(0.2, 0.75), rng.uniform(0.25, 0.9))
            a, b = rng.uniform(24, 50), rng.uniform(22, 42)
            turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            reach = 1 + 0.22 * rng.standard_normal(12).clip(-2, 2)
            blob = np.stack([a * reach * np.cos(turn), b * reach * np.sin(turn)], 1) + centre
            weight = c.blur(c.fill(spline(blob, closed=True)), 9.0) * self.chest.lung_mask[side]
            solid = weight * smoothstep(weight + texture, 0.4, 1.8) * rng.uniform(0.4, 0.8)
            self.soft += solid * chest.lung
            self.marks *= 1 - 0.7 * solid
            region |= (weight > 0.45) & (chest.lung_mask[side] > 0.5)
        return region

    def _emphysema(self, rng) -> np.ndarray:
        """Overinflation (the domes were drawn low and flat), thin markings, bullae above."""
        c, chest = self.canvas, self.chest
        both = chest.lung_mask[-1] + chest.lung_mask[1]
        upper = 1 - 0.5 * smoothstep(c.y, -60, 60)
        self.density *= 1 - rng.uniform(0.1, 0.25) * both * upper
        self.marks *= 1 - 0.6 * both * upper
        rims = []
        for _ in range(int(rng.integers(2, 6))):
            side = int(rng.choice([-1, 1]))
            x, y = chest.place(side, rng.uniform(0.3, 0.95), rng.uniform(0.05, 0.6))
            bulla = ellipse(x, y, rng.uniform(10, 22), rng.uniform(10, 24), rng.uniform(0, 180))
            hole = c.blur(c.fill(bulla), 2.0) * both
            self.density *= 1 - 0.35 * hole
            self.marks *= 1 - 0.9 * hole
            rims.append(np.concatenate([bulla, bulla[:1]]))
        self.soft += 2.2 * c.stroke(rims, 1.2) * both
        return (both > 0.5) & (chest.heart_mask < 0.5)

    def _fibrosis(self, rng) -> np.ndarray:
        """A net of fine lines, nearest the pleura, at the bases or (a quarter) the apices."""
        c, chest = self.canvas, self.chest
        both = np.maximum(self._field(-1), self._field(1))
        low = 0.5 * (chest.dome[-1] + chest.dome[1])
        apical = rng.random() < 0.25
        zone = smoothstep(-c.y, 40, 90) if apical else smoothstep(c.y, low - 120, low - 30)
        rim = 1 - 0.5 * smoothstep(chest.depth_in, 20, 60)
        rim = rim * smoothstep(np.abs(c.x), 25, 55)
        patchy = 0.8 + 0.25 * c.noise(rng, 30.0)
        weight = c.blur(zone * rim * patchy, 3.0) * both
        field = c.blur(c.noise(rng, 3.0), 2.6)
        field = field - c.blur(field, 7.0)
        net = np.exp(-((field / (0.35 * float(field.std()))) ** 2))
        self.soft += np.clip(weight, 0, 1) * (rng.uniform(14, 24) * net + 2.0)
        return weight > 0.35


def shape_of(present: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """How findings change the chest's own form: `Chest`'s arguments heart, flat, lower."""
    u = rng.random(3).tolist()
    form = {'heart': 1.0, 'flat': 0.0, 'lower': 0.0}
    if present[0]:
        form['heart'] = 1.16 + 0.24 * u[0]
    if present[6]:
        form['flat'] = 0.2 + 0.5 * u[1]
        form['lower'] += 8 * u[1]
        form['heart'] *= 0.97
    if present[7]:
        form['lower'] -= 2 + 8 * u[2]
    return form
