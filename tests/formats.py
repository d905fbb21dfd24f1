"""One mask written in every format, each by the library that others use for it: highdicom, nibabel, Pillow, pydicom, scikit-image, pandas."""

import highdicom as hd
import nibabel as nib
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


def seg(folder, ct, masks, label='tumour', kind='BINARY'):
    "`ct`: data sets of the slices that `masks` (N,H,W) lie on"
    ct = [pydicom.dcmread(d.filename) for d in ct]
    frame = generate_uid()
    for d in ct:  # highdicom needs what 3D-IRCADb's slices lack; the CT files themselves stay as they are
        for tag, value in dict(
            FrameOfReferenceUID=frame,
            PatientBirthDate='',
            PatientSex='',
            StudyID='',
            AccessionNumber='',
            StudyDate='',
            StudyTime='',
            ReferringPhysicianName='',
            PositionReferenceIndicator='',
            Manufacturer='x',
        ).items():
            if tag not in d:
                setattr(d, tag, value)
    description = hd.seg.SegmentDescription(
        1, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, 'MANUAL'
    )
    made = hd.seg.Segmentation(
        ct,
        masks.astype(np.float32 if kind == 'FRACTIONAL' else np.uint8),
        kind,
        [description],
        generate_uid(),
        1,
        generate_uid(),
        1,
        'maker',
        'model',
        '1',
        '1',
        **({'fractional_type': 'PROBABILITY'} if kind == 'FRACTIONAL' else {}),
    )
    if 'FrameOfReferenceUID' not in pydicom.dcmread(ct[0].filename, stop_before_pixels=True):
        del made.FrameOfReferenceUID
    made.save_as(folder / 'seg.dcm')


def rtstruct(folder, ct, masks, label='tumour', references=True):
    ds = FileDataset('', {}, file_meta=FileMetaDataset(), preamble=b'\0' * 128)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = RTStructureSetStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (
        'RTSTRUCT',
        ct[0].PatientID,
        ct[0].StudyInstanceUID,
        generate_uid(),
    )
    series, study, frame, roi, outline = (Dataset() for _ in range(5))
    series.SeriesInstanceUID, series.ContourImageSequence = ct[0].SeriesInstanceUID, []
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = (
        ct[0].get('FrameOfReferenceUID', generate_uid()),
        [study],
    )
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID, roi.ROIGenerationAlgorithm = (
        1,
        label,
        frame.FrameOfReferenceUID,
        'MANUAL',
    )
    outline.ReferencedROINumber, outline.ContourSequence = 1, []
    for d, mask in zip(ct, masks):
        along, down, origin = (
            np.array(d.ImageOrientationPatient[:3], float),
            np.array(d.ImageOrientationPatient[3:], float),
            np.array(d.ImagePositionPatient, float),
        )
        for c in contours(mask):
            item, image = Dataset(), Dataset()
            points = origin + c[:-1, :1] * d.PixelSpacing[0] * down + c[:-1, 1:] * d.PixelSpacing[1] * along
            item.ContourGeometricType, item.NumberOfContourPoints, item.ContourData = (
                'CLOSED_PLANAR',
                len(points),
                [f'{v:.5g}' for v in points.ravel()],
            )
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
            if references:
                item.ContourImageSequence = [image]
            outline.ContourSequence.append(item)
    ds.ReferencedFrameOfReferenceSequence, ds.StructureSetROISequence, ds.ROIContourSequence = [frame], [roi], [outline]
    ds.save_as(folder / 'rtstruct.dcm', enforce_file_format=True)


def nifti(folder, ct, masks, label='tumour', axes='RAS', value=1):
    d, last = ct[0], ct[-1]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (
        np.array(d.ImageOrientationPatient[:3], float) * d.PixelSpacing[1],
        np.array(d.ImageOrientationPatient[3:], float) * d.PixelSpacing[0],
    )
    affine[:3, 2] = (np.array(last.ImagePositionPatient, float) - d.ImagePositionPatient) / max(1, len(ct) - 1)
    affine[:3, 3] = d.ImagePositionPatient
    image = nib.Nifti1Image((value * masks).astype(np.uint8).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    image.as_reoriented(turn).to_filename(folder / f'{label}.nii.gz')


def png(folder, ct, masks, label='tumour'):
    "Pictures numbered as the slices' InstanceNumber, as CHAOS has them"
    (folder / 'Ground').mkdir()
    for k, i in enumerate(sorted(range(len(ct)), key=lambda i: int(ct[i].InstanceNumber))):
        Image.fromarray(masks[i]).save(folder / 'Ground' / f'{label}_{k:03}.png')


def maskdir(folder, ct, masks, label='tumour'):
    (folder / 'MASKS_DICOM' / label).mkdir(parents=True)
    uid = generate_uid()
    for d, mask in zip(ct, masks):
        out = pydicom.dcmread(d.filename)
        (
            out.SeriesInstanceUID,
            out.SOPInstanceUID,
            out.BitsAllocated,
            out.BitsStored,
            out.HighBit,
            out.PixelRepresentation,
            out.RescaleIntercept,
        ) = uid, generate_uid(), 8, 8, 7, 0, 0
        out.file_meta.TransferSyntaxUID, out.file_meta.MediaStorageSOPInstanceUID = (
            ExplicitVRLittleEndian,
            out.SOPInstanceUID,
        )
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
    'png': png,
    'maskdir': maskdir,
    'polygons': polygons,
    'boxes': boxes,
}
