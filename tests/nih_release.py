"""A miniature of the NIH ChestX-ray14 release, with the traps of the real files."""

import cv2
import numpy as np

HEADER = (
    'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,'
    'View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]'
)
KAGGLE_HEADER = (
    'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,'
    'View Position,OriginalImageWidth,OriginalImageHeight,'
    'OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y'
)
BOX_HEADER = 'Image Index,Finding Label,Bbox [x,y,w,h],,,'
FINDINGS = ('No Finding', 'Hernia', 'Infiltration|Mass', 'Atelectasis|Pleural_Thickening')


def write_release(root, train_patients=6, test_patients=2, size=64, kaggle=False):
    """Two images per patient, every 64 x 64 picture different; returns the two lists of ids."""
    rng = np.random.default_rng(0)
    lists = {'train_val': [], 'test': []}
    rows = []
    for patient in range(1, train_patients + test_patients + 1):
        for visit in range(2):
            image_id = f'{patient:08}_{visit:03}.png'
            lists['train_val' if patient <= train_patients else 'test'].append(image_id)
            folder = root / (f'images_{1 + visit:03}/images' if kaggle else 'images')
            folder.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (size, size), np.uint8)
            if visit:  # as a few hundred of the real ones are
                image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA)
            cv2.imwrite(str(folder / image_id), image)
            number, age = (f'{patient:08}', f'{50 + patient:03}Y') if kaggle else (patient, 50 + patient)
            rows.append(
                f'{image_id},{FINDINGS[patient % 4]},{visit},{number},{age},'
                f'{"FM"[patient % 2]},{("PA", "AP")[visit]},2500,2048,0.168,0.168'
            )
    name = 'Data_Entry_2017.csv' if kaggle else 'Data_Entry_2017_v2020.csv'
    header = KAGGLE_HEADER if kaggle else HEADER
    (root / name).write_text('\n'.join([header, *rows]) + '\n')
    for split, ids in lists.items():
        (root / f'{split}_list.txt').write_text('\n'.join(ids) + '\n')
    (root / 'BBox_List_2017.csv').write_text(
        f'{BOX_HEADER}\n{lists["train_val"][0]},Infiltrate,256,512,128.0,64,,,\n'
        f'{lists["train_val"][0]},Mass,1000,0,24.5,1024,,,\n'
    )
    return lists
