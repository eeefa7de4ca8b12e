"""Who is on a film of the phantom, and how the film was taken."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Patient:
    """What stays the same in all images of one person; lengths in mm, factors around 1."""

    sex: str  # 'F' or 'M'
    age: int  # years
    images: int  # 1 to 4
    width: float  # thorax width factor
    height: float  # thorax height factor
    depth: float  # front-to-back thickness of the trunk, mm
    fat: float  # extra chest wall at the sides, mm
    breast: float  # greatest added thickness of a breast, mm
    breast_low: float  # its centre, mm below the origin
    heart: float  # heart width factor of a normal heart
    knob: float  # aortic knob factor, grows with age
    rib_width: float  # mm
    rib_drop: float  # from the posterior to the anterior end of a full rib ring, mm
    bone: float  # mineral factor
    scoliosis: float  # sideways bow of the spine, mm
    vessels: float  # strength of the vascular markings

    @classmethod
    def draw(cls, rng: np.random.Generator) -> 'Patient':
        """A person drawn from `rng` (always the same number of draws)."""
        female = bool(rng.random() < 0.45)
        age = int(np.clip(rng.normal(55, 17), 18, 92))
        u = rng.random(13).tolist()  # Python floats keep float32 maps float32
        fat = float(rng.gamma(2.0, 9.0))
        return cls(
            sex='F' if female else 'M',
            age=age,
            images=1 + int(rng.choice(4, p=(0.25, 0.3, 0.25, 0.2))),
            width=(0.93 if female else 1.0) * (0.9 + 0.2 * u[0]),
            height=(0.95 if female else 1.0) * (0.9 + 0.2 * u[1]),
            depth=185 + 40 * u[2] + 1.5 * min(fat, 50.0),
            fat=min(fat, 50.0),
            breast=female * (8 + 42 * u[3] ** 1.5) + (not female) * 6 * u[3],
            breast_low=25 + 55 * u[4],
            heart=0.88 + 0.16 * u[5],
            knob=0.75 + 0.006 * (age - 18) + 0.3 * u[6],
            rib_width=8.0 + 4.0 * u[7],
            rib_drop=75 + 45 * u[8],
            bone=(1.25 - 0.006 * max(age - 40, 0)) * (0.75 + 0.4 * u[9]),
            scoliosis=12 * (u[10] - 0.5) * (1 + (u[11] > 0.85)),
            vessels=0.6 + 0.8 * u[12],
        )


@dataclasses.dataclass(frozen=True)
class Pose:
    """How one image was taken."""

    view: str  # 'PA' or 'AP'
    inspiration: float  # mm the diaphragms stand lower (+) or higher (-)
    heart_scale: float  # geometric magnification of the heart against the ribs
    yaw: float  # mm by which the front of the chest shifts against the back
    scapula: float  # mm by which the shoulder blades are swung out of the lungs
    arms: bool
    affine: np.ndarray  # [2, 3] mm -> mm on the detector: rotation, size, shift

    @classmethod
    def draw(cls, rng: np.random.Generator) -> 'Pose':
        """A pose drawn from `rng`: AP enlarges the heart, raises the domes, leaves scapulae in."""
        ap = bool(rng.random() < 0.4)
        u = rng.random(8).tolist()
        angle = np.deg2rad(rng.normal(0, 2.5 if ap else 1.5))
        scale = (1.06 + 0.24 * u[0]) * (1.02 if ap else 1.0)
        c, s = scale * np.cos(angle), scale * np.sin(angle)
        shift = rng.normal((0, 12), (9, 11))
        return cls(
            view='AP' if ap else 'PA',
            inspiration=float(rng.normal(-14 if ap else 0, 9)),
            heart_scale=(1.10 + 0.10 * u[1]) if ap else (1.0 + 0.05 * u[1]),
            yaw=float(rng.normal(0, 7 if ap else 4)),
            scapula=(8 + 18 * u[2]) if ap else (28 + 20 * u[2]),
            arms=bool(ap and u[3] < 0.6),
            affine=np.array([[c, -s, shift[0]], [s, c, shift[1]]]),
        )
