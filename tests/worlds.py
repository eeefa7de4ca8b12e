"""Four folders as people really have them, of synthetic films, for tests of prepare and of what follows it.

Each function fills a new folder below `root` and returns it with the options that `prepare` needs there.
Films are distinct, so a copy is found only where one is planted.
"""

import pathlib
import zipfile

import cv2
import dicoms
import numpy as np

SIDE = 80


def film(seed: int, side: int = SIDE) -> np.ndarray:
    """uint8 [side, side]: two dark lungs on a bright chest, different for every seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : 1j * side, -1 : 1 : 1j * side]
    picture = 200 - 90 * (x**2 + y**2) / 2
    for centre in (-0.4, 0.4):
        width, height = rng.uniform(0.22, 0.3), rng.uniform(0.55, 0.7)
        picture -= 100 * (((x - centre) / width) ** 2 + (y / height) ** 2 < 1)
    return np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255).astype(np.uint8)


def write_film(path: pathlib.Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, film(seed))[1].tobytes())


def pacs_export(root: pathlib.Path, patients: int = 8) -> tuple[pathlib.Path, dict]:
    """DICOM without suffix in dated folders, a link to one of them, a DICOMDIR; no table.

    Two studies a patient, on two days: only the headers say that they are one patient's.
    """
    folder = root / 'EXPORT'
    for number in range(2 * patients):
        patient = number % patients
        day = folder / f'2024{1 + number // patients:02}{1 + patient:02}' / f'ST{number:06}'
        if number == 0:
            day = root / 'archive' / day.name
        dicoms.write(
            day / f'IM{number:06}',
            film(number).astype(np.uint16) * 16,
            modality='DX',
            bits=12,
            PatientID=f'{patient:06}' if number < patients else f' {patient:06}',
            PatientSex='FM'[patient % 2],
            PatientAge=f'0{40 + patient}Y',
            ViewPosition='PA',
        )
    (folder / '20240101').mkdir(parents=True, exist_ok=True)
    (folder / '20240101' / 'linked').symlink_to(root / 'archive' / 'ST000000')
    (folder / 'DICOMDIR').write_bytes(b'\0' * 128 + b'DICM')
    (folder / 'README.TXT').write_text('viewer')
    return folder, {}


CHEXPERT = [
    *('No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion', 'Edema'),
    *('Consolidation', 'Pneumonia', 'Atelectasis', 'Pneumothorax', 'Pleural Effusion', 'Pleural Other'),
    *('Fracture', 'Support Devices'),
]


def chexpert(root: pathlib.Path, patients: int = 10) -> tuple[pathlib.Path, dict]:
    """CheXpert's table: a path whose first folder is the set's own name, 14 findings as 1, 0, -1 or blank.

    Two films a patient, whom only the folders name; every third film is lateral.
    """
    folder, rows = root / 'CheXpert-v1.0-small', []
    for number in range(2 * patients):
        patient, lateral = number // 2, number % 3 == 2
        name = (
            f'train/patient{patient:05}/study1/view{1 + number % 2}_{"lateral" if lateral else "frontal"}.jpg'
        )
        write_film(folder / name, number)
        findings = [''] * len(CHEXPERT)
        findings[number % 14] = '1.0'
        findings[(number + 1) % 14] = ('-1.0', '0.0')[number % 2]
        kind = 'Lateral,' if lateral else f'Frontal,{("AP", "PA")[number % 2]}'
        sex = ('Female', 'Male')[patient % 2]
        rows.append(f'CheXpert-v1.0-small/{name},{sex},{50 + patient},{kind},{",".join(findings)}')
    header = 'Path,Sex,Age,Frontal/Lateral,AP/PA,' + ','.join(CHEXPERT)
    (folder / 'train.csv').write_text('\n'.join([header, *rows]) + '\n')
    return folder, {}


def german_excel(root: pathlib.Path, films: int = 16) -> tuple[pathlib.Path, dict]:
    """A table from a German Excel: semicolons, Windows-1252, decimal commas, empty last column and rows."""
    folder, rows = root / 'Röntgen 2024', []
    for number in range(films):
        write_film(folder / f'Bilder/Aufnahme {number:03}.png', number)
        finding = ('Pleuraerguß', 'kein Befund', 'Pleuraerguß, Stauung', 'pleuraerguß')[number % 4]
        sex, view = ('weiblich', 'männlich')[number // 2 % 2], ('p.a.', 'a.p. liegend')[number % 2]
        rows.append(
            f'Bilder\\Aufnahme {number:03}.png;{number // 2},0;"{finding}";{sex};{60 + number},5;{view};'
        )
    header = 'Dateiname;Patienten-Nr.;Befund;Geschlecht;Alter;Ansicht;'
    text = '\r\n'.join(['sep=;', header, *rows, ';;;;;;', ''])
    (folder / 'Tabelle.csv').write_bytes(text.encode('cp1252'))
    return folder, {}


def kaggle_zip(root: pathlib.Path, films: int = 20) -> tuple[pathlib.Path, dict]:
    """A Kaggle zip that a Mac made, unpacked: chest_xray/{train,test}/{class}, __MACOSX, ._ files."""
    folder, archive = root / 'archive', root / 'archive.zip'
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, 'w') as file:
        for number in range(films):
            split, kind = ('test', 'train', 'train')[number % 3], ('NORMAL', 'PNEUMONIA')[number // 3 % 2]
            name = f'chest_xray/{split}/{kind}/IM-{number:04}.jpeg'
            file.writestr(name, cv2.imencode('.jpeg', film(number))[1].tobytes())
            file.writestr(f'__MACOSX/{name.replace("IM-", "._IM-")}', b'\0\5\x16\7' + bytes(100))
        file.writestr('chest_xray/.DS_Store', b'\0\0\0\1Bud1')
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder, {}


WORLDS = {
    'pacs_export': pacs_export,
    'chexpert': chexpert,
    'german_excel': german_excel,
    'kaggle_zip': kaggle_zip,
}
