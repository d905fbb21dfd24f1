"""One mask written in every format, each by the library that others use for it.

These are highdicom, nibabel, pynrrd, Pillow, pydicom, scikit-image and pandas; MetaImage is written as ITK does.
"""

import zlib

import highdicom as hd
import nibabel as nib
import nrrd as pynrrd
import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from skimage.measure import find_contours


def contours(mask):
    "Outlines of a mask at the edges of its pixels' area, outer ones and holes: (N,2) rows and columns"
    return [c - 1 for c in find_contours(np.pad(mask, 1).astype(float), 0.5)]


WANTED = dict.fromkeys(
    'PatientBirthDate PatientSex StudyID AccessionNumber StudyDate StudyTime ReferringPhysicianName '
    'PositionReferenceIndicator'.split(),
    '',
)  # what highdicom needs and 3D-IRCADb's slices lack


def sources(ct):
    "The slices as highdicom wants them; the CT files themselves stay as they are"
    read, frame = [pydicom.dcmread(d.filename) for d in ct], generate_uid()
    for d in read:
        for tag, value in (WANTED | dict(FrameOfReferenceUID=frame, Manufacturer='x')).items():
            if tag not in d:
                setattr(d, tag, value)
    return read


def seg(folder, ct, masks, label='tumour', kind='BINARY'):
    "`ct`: data sets of the slices that `masks` (N,H,W) lie on"
    lesion = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion
    segment = hd.seg.SegmentDescription(1, label, *lesion, 'MANUAL')
    fractional = kind == 'FRACTIONAL'
    pixels = masks.astype(np.float32 if fractional else np.uint8)
    by = ('maker', 'model', '1', '1')
    options = dict(fractional_type='PROBABILITY') if fractional else {}
    made = hd.seg.Segmentation(
        sources(ct), pixels, kind, [segment], generate_uid(), 1, generate_uid(), 1, *by, **options
    )
    if 'FrameOfReferenceUID' not in pydicom.dcmread(ct[0].filename, stop_before_pixels=True):
        del made.FrameOfReferenceUID
    made.save_as(folder / 'seg.dcm')


def dataset(**values):
    ds = Dataset()
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def planar_contour(d, points, references):
    "An item of ContourSequence: `points` (N,2) rows and columns on the slice `d`"
    along, down = np.array(d.ImageOrientationPatient, float).reshape(2, 3)
    row, col = points[:, :1] * d.PixelSpacing[0], points[:, 1:] * d.PixelSpacing[1]
    mm = np.array(d.ImagePositionPatient, float) + row * down + col * along
    image = dataset(ReferencedSOPClassUID=d.SOPClassUID, ReferencedSOPInstanceUID=d.SOPInstanceUID)
    item = dataset(
        ContourGeometricType='CLOSED_PLANAR',
        NumberOfContourPoints=len(mm),
        ContourData=[f'{v:.5g}' for v in mm.ravel()],
    )
    if references:
        item.ContourImageSequence = [image]
    return item


def rtstruct(folder, ct, masks, label='tumour', references=True):
    "`references`: contours name their slices"
    d = ct[0]
    ds = FileDataset('', {}, file_meta=FileMetaDataset(), preamble=b'\0' * 128)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = RTStructureSetStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.SeriesInstanceUID = 'RTSTRUCT', generate_uid()
    ds.PatientID, ds.StudyInstanceUID = d.PatientID, d.StudyInstanceUID
    series = dataset(SeriesInstanceUID=d.SeriesInstanceUID, ContourImageSequence=[])
    study = dataset(RTReferencedSeriesSequence=[series])
    frame = d.get('FrameOfReferenceUID', generate_uid())
    ds.ReferencedFrameOfReferenceSequence = [dataset(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    roi = dict(ROINumber=1, ROIName=label, ROIGenerationAlgorithm='MANUAL')
    ds.StructureSetROISequence = [dataset(**roi, ReferencedFrameOfReferenceUID=frame)]
    items = [planar_contour(d, c[:-1], references) for d, mask in zip(ct, masks) for c in contours(mask)]
    ds.ROIContourSequence = [dataset(ReferencedROINumber=1, ContourSequence=items)]
    ds.save_as(folder / 'rtstruct.dcm', enforce_file_format=True)


def nifti(folder, ct, masks, label='tumour', axes='RAS', value=1):
    d, last = ct[0], ct[-1]
    along, down = np.array(d.ImageOrientationPatient, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along * d.PixelSpacing[1], down * d.PixelSpacing[0]
    affine[:3, 2] = (np.array(last.ImagePositionPatient, float) - d.ImagePositionPatient) / max(1, len(ct) - 1)
    affine[:3, 3] = d.ImagePositionPatient
    image = nib.Nifti1Image((value * masks).astype(np.uint8).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    image.as_reoriented(turn).to_filename(folder / f'{label}.nii.gz')


def steps(ct):
    "Of a volume of slices: mm from voxel to voxel, one row for each of columns, rows and slices"
    d, last = ct[0], ct[-1]
    along, down = np.array(d.ImageOrientationPatient, float).reshape(2, 3)
    up = (np.array(last.ImagePositionPatient, float) - d.ImagePositionPatient) / max(1, len(ct) - 1)
    return np.stack([along * d.PixelSpacing[1], down * d.PixelSpacing[0], up])


def nrrd(folder, ct, masks, label='tumour'):
    space = {'space': 'LPS', 'space directions': steps(ct), 'space origin': list(ct[0].ImagePositionPatient)}
    pynrrd.write(str(folder / f'{label}.nrrd'), masks.astype(np.uint8).transpose(2, 1, 0), space)


def metaimage(folder, ct, masks, label='tumour'):
    size = np.linalg.norm(steps(ct), axis=1)
    text = lambda values: ' '.join(f'{float(v):.12g}' for v in np.ravel(values))
    header = f"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = True
TransformMatrix = {text(steps(ct) / size[:, None])}
Offset = {text(ct[0].ImagePositionPatient)}
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = {text(size)}
DimSize = {text(masks.shape[::-1])}
ElementType = MET_UCHAR
ElementDataFile = LOCAL
"""
    (folder / f'{label}.mha').write_bytes(header.encode() + zlib.compress(masks.astype(np.uint8).tobytes()))


def pictures(folder, ct, masks, label, suffix):
    "Pictures numbered as the slices' InstanceNumber, as CHAOS has them"
    folder.mkdir()
    for k, i in enumerate(sorted(range(len(ct)), key=lambda i: int(ct[i].InstanceNumber))):
        picture = masks[i] if suffix == 'png' else (255 * masks[i]).astype(np.uint8)
        Image.fromarray(picture).save(folder / f'{label}_{k:03}.{suffix}')


def png_mask(folder, ct, masks, label='tumour'):
    pictures(folder / 'Ground', ct, masks, label, 'png')


def tiff_mask(folder, ct, masks, label='tumour'):
    pictures(folder / 'Tiff', ct, masks, label, 'tif')


def jpeg_mask(folder, ct, masks, label='tumour'):
    pictures(folder / 'Jpeg', ct, masks, label, 'jpg')


def dicom_mask(folder, ct, masks, label='tumour'):
    (folder / 'MASKS_DICOM' / label).mkdir(parents=True)
    uid = generate_uid()
    for d, mask in zip(ct, masks):
        out = pydicom.dcmread(d.filename)
        out.SeriesInstanceUID, out.SOPInstanceUID = uid, generate_uid()
        out.BitsAllocated, out.BitsStored, out.HighBit = 8, 8, 7
        out.PixelRepresentation, out.RescaleIntercept = 0, 0
        out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        out.file_meta.MediaStorageSOPInstanceUID = out.SOPInstanceUID
        for tag in ('PixelPaddingValue', 'SmallestImagePixelValue', 'LargestImagePixelValue'):
            out.pop(tag, None)
        out['PixelData'].VR, out.PixelData = 'OB', (255 * mask).astype(np.uint8).tobytes()
        out.save_as(folder / 'MASKS_DICOM' / label / f'image_{d.InstanceNumber}', enforce_file_format=True)


def polygons(folder, ct, masks, label='tumour'):
    rows = [
        dict(lesion=label, image=d.SOPInstanceUID, contour=k, row=r, col=c)
        for d, mask in zip(ct, masks)
        for k, points in enumerate(contours(mask))
        for r, c in points
    ]
    pd.DataFrame(rows).to_csv(folder / 'polygons.csv', index=False)


def boxes(folder, ct, masks, label='tumour'):
    rows = []
    for d, mask in zip(ct, masks):
        if mask.any():
            r, c = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            rows.append(
                dict(lesion=label, image=d.SOPInstanceUID, row_min=r[0], row_max=r[-1], col_min=c[0], col_max=c[-1])
            )
    pd.DataFrame(rows).to_csv(folder / 'boxes.csv', index=False)


ALL = {
    'seg': seg,
    'rtstruct': rtstruct,
    'nifti': nifti,
    'nrrd': nrrd,
    'metaimage': metaimage,
    'png-mask': png_mask,
    'tiff-mask': tiff_mask,
    'jpeg-mask': jpeg_mask,
    'dicom-mask': dicom_mask,
    'polygons': polygons,
    'boxes': boxes,
}
