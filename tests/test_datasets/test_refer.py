# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import os
import pickle

import numpy as np
import pytest
from hostile import Call
from pycocotools import mask as coco_mask

from cris.datasets.masks import decode_mask
from cris.datasets.readers.refer import load_refer
from cris.io.pickles import load_plain_pickle

SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]


def load_files(refer_set, split='train', ann_file='instances.json',
               split_file='refs(unc).p'):
    return load_refer(str(refer_set.root / ann_file),
                      str(refer_set.root / split_file), split)


def load(refer_set, split='train'):
    refer_set.write()
    return load_files(refer_set, split)


def test_images_with_their_refs(refer_set):
    images = load(refer_set)
    assert [image['file_name'] for image in images] == ['1.jpg', '2.jpg']
    assert (images[0]['height'], images[0]['width']) == (80, 50)
    first, second = images[0]['refs']
    assert (first['ref_id'], first['ann_id']) == (2, 102)
    assert second['sentences'][0] == 'thing 3 left'
    assert second['sent_ids'] == [30, 31, 32, 33]


class TestMasks:
    mask = np.zeros((8, 10), np.uint8)
    mask[1:5, 2:6] = 1

    def test_polygons_and_rle_compressed_or_not(self):
        rle = coco_mask.encode(np.asfortranarray(self.mask))
        flat = self.mask.ravel(order='F')
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, flat.size]).tolist()
        for segmentation in (
                [SQUARE], rle, dict(rle, counts=rle['counts'].decode()), [rle],
                dict(size=[8, 10], counts=counts)):
            decoded = decode_mask(segmentation, 8, 10)
            assert decoded.dtype == np.uint8
            assert np.array_equal(decoded, self.mask)

    def test_polygons_that_overlap_are_united(self):
        expected = self.mask.copy()
        expected[3:7, 4:9] = 1
        decoded = decode_mask([SQUARE, [4, 3, 9, 3, 9, 7, 4, 7]], 8, 10)
        assert np.array_equal(decoded, expected)

    @pytest.mark.parametrize('segmentation, message', [
        ([], 'empty'),
        ([[1, 2, 3, 4]], '4 numbers'),
        ([[1, 2, 3, 4, 5, 6, 7]], '7 numbers'),
        (dict(size=[8, 11], counts='abc'), r'\[8, 11\]'),
        (dict(size=[8, 10], counts=[3, 4]), 'counts 7 pixels'),
        (dict(size=[8, 10], counts='abc'), 'ends within a run'),
        (dict(size=[8, 10], counts='0'), 'counts 0 pixels, the image has 80'),
        (dict(size=[8, 10], counts='é\n'), 'characters'),
        (dict(size=[8, 10], counts='o' * 10_000_000), 'more than 2'),
        ([[0, 0, 1e308, 0, 1e308, 1e308]], 'far outside'),
        ([[float('nan')] * 6], 'far outside'),
        ('abc', 'neither polygon nor RLE'),
        (None, 'neither polygon nor RLE'),
    ])
    def test_others_are_refused(self, segmentation, message):
        with pytest.raises(ValueError, match=message):
            decode_mask(segmentation, 8, 10)

    def test_edges_of_a_polygon_are_limited(self):
        zigzag = [-10_000, 0, 10_000, 1] * 500
        with pytest.raises(ValueError, match='edges of 20000000 pixels'):
            decode_mask([zigzag], 1000, 1000)


class TestFaults:

    def expect(self, refer_set, *messages, split='train'):
        with pytest.raises(ValueError) as error:
            load(refer_set, split)
        for message in messages:
            assert message in str(error.value)

    @pytest.mark.parametrize('entries, change, message', [
        ('refs', dict(ann_id=999), 'ref 2: its ann_id 999 does not exist'),
        ('refs', dict(ann_id=100), 'ref 2: its ann_id 100 lies in image 0'),
        ('refs', dict(ann_id='102'), "ref 2: its ann_id '102' does not"),
        ('refs', dict(ann_id=[102]), 'ref 2: its ann_id [102] is a list'),
        ('refs', dict(image_id=77), 'ref 2: its image_id 77 does not exist'),
        ('refs', dict(sentences=5), 'ref 2: its sentences 5 are not a list'),
        ('refs', dict(sentences=['left']), 'ref 2: its sentence'),
        ('refs', dict(sentences=[dict(sent='left')]), 'ref 2: its sentence'),
        ('refs', dict(sentences=[dict(sent_id=1, sent=None)]),
         'ref 2: its sentence'),
        ('refs', dict(sentences=[dict(sent_id=1, sent='a' * 5001)]),
         'has 5001 characters'),
        ('images', dict(height=2**31), 'more than the limit of 100000000'),
        ('images', dict(height=10**400), 'more than the limit of 100000000'),
        ('images', dict(height=80.5), 'height 80.5, not a positive integer'),
        ('images', dict(file_name='../1.jpg'), 'leaves the folder'),
        ('images', dict(file_name='/etc/1.jpg'), 'leaves the folder'),
        ('images', dict(file_name='a/../../1'), 'leaves the folder'),
        ('anns', dict(segmentation=[]),
         'ref 2: the mask of its ann_id 102 is empty'),
        ('anns', dict(segmentation=[[3, 3, 3, 3, 3, 3]]), 'is empty'),
        ('anns', dict(segmentation=dict(size=[80, 50], counts=[4000])),
         'is empty'),
    ])
    def test_an_entry(self, refer_set, entries, change, message):
        index = 1 if entries == 'images' else 2
        getattr(refer_set, entries)[index].update(change)
        self.expect(refer_set, message, 'Correct these entries')

    def test_a_sentence_that_is_not_unicode(self, refer_set):
        refer_set.refs[2]['sentences'][0]['sent'] = '\ud800'
        path = refer_set.root / 'refs.json'  # a pickle cannot hold it
        path.write_text(json.dumps(refer_set.refs))
        with pytest.raises(ValueError, match='not Unicode text'):
            load_files(refer_set, split_file='refs.json')

    def test_no_categories_and_a_ref_without_a_split(self, refer_set):
        del refer_set.refs[0]['split']
        path = refer_set.write() / 'instances.json'
        content = json.loads(path.read_text())
        path.write_text(json.dumps(dict(content, categories=1)))
        assert load_files(refer_set)

    @pytest.mark.parametrize('entries', ['images', 'anns'])
    def test_two_with_one_id(self, refer_set, entries):
        getattr(refer_set, entries).append(getattr(refer_set, entries)[-1])
        self.expect(refer_set, 'two have the id', 'instances.json')

    def test_entries_that_are_not_dicts(self, refer_set):
        refer_set.anns.append(5)
        self.expect(refer_set, 'annotations of', '5 is not a dict with an id')

    def test_all_are_listed_at_once(self, refer_set):
        for ref in refer_set.refs:
            ref['ann_id'] = -1
        for _ in range(12):
            refer_set.add_ref(1, [], 'train')
        self.expect(refer_set, '16 fault(s)', 'ref 2:', 'and 6 more')

    def test_other_splits_do_not_matter(self, refer_set):
        refer_set.refs[0]['ann_id'] = -1  # of val
        refer_set.refs[4]['split'] = 'testA'
        refer_set.refs[5]['split'] = 'testAB'
        (image, ) = load(refer_set, 'testA')
        assert [ref['ref_id'] for ref in image['refs']] == [4]

    def test_split_that_does_not_exist(self, refer_set):
        self.expect(
            refer_set,
            "no split 'testC'; it has val (2 refs), train (4 refs)",
            split='testC')


class TestFiles:

    @pytest.mark.parametrize('key', ['ann_file', 'split_file'])
    def test_missing(self, refer_set, key):
        with pytest.raises(FileNotFoundError, match='does not exist'):
            load_files(refer_set, **{key: 'nothing'})

    @pytest.mark.parametrize('name, message, contents', [
        ('instances.json', 'instances.json is not',
         (b'{"images": [', b'[]', b'{}', b'{"images": {}}')),
        ('refs(unc).p', r'refs\(unc\).p',
         (b'', b'abc', b'\x80\x04N.', b'(lp0'))])
    def test_broken_or_something_else(self, refer_set, name, message,
                                      contents):
        for content in contents:
            (refer_set.root / name).write_bytes(content)
            with pytest.raises(ValueError, match=message):
                load_files(refer_set)


class TestPickles:

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / 'refs.p'

    @pytest.mark.parametrize('protocol', range(6))
    def test_code_is_refused(self, path, protocol):
        marker = path.parent / 'marker'
        call = Call(os.mkdir, str(marker))
        path.write_bytes(pickle.dumps([dict(ref_id=call)], protocol))
        with pytest.raises(ValueError, match='mkdir'):
            load_plain_pickle(str(path))
        assert not marker.exists()

    @pytest.mark.parametrize('content, message', [
        (b'\x80\x02Nr\xff\xff\xff\x7f.', 'refers to more than'),
        (b'Np2000000000\n.', 'refers to more than'),
        (b'\x80\x02}N' + b'\x85' * 200_000 + b'Ns.', 'than 50000 tuples'),
        (b'\x80\x02' + b']' * 100 + b'a' * 99 + b'.', 'nested deeper'),
        (b'\x80\x02]' + b'q\0]h\0ah\0a' * 40 + b'.', 'over and over'),
        (b'\x80\x02]q\0h\0a.', 'over and over'),
    ])
    def test_what_would_fill_the_memory(self, path, content, message):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_plain_pickle(str(path))

    def test_more_than_a_million_objects_of_protocol_0(self, path):
        """As Python 2 wrote them."""
        data = [dict(t=[f'a{i}']) for i in range(340_000)]
        path.write_bytes(pickle.dumps(data, 0))
        assert b'p1019999\n' in path.read_bytes()
        assert load_plain_pickle(str(path)) == data

    @pytest.mark.parametrize('protocol', range(6))
    def test_plain_data_of_any_protocol(self, path, protocol):
        data = [dict(a=(1, 2.5, None, True), b=['é', -2**70, b'x'])]
        if protocol < 3:  # bytes need a global there
            data[0]['b'].pop()
        path.write_bytes(pickle.dumps(data, protocol))
        assert load_plain_pickle(str(path)) == data

    def test_written_by_python_2(self, path):
        # [{'sent': u'caf\xe9', 'split': 'caf\xc3\xa9'}], protocol 0
        path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nVcaf\xe9\np3\nsS'split'\n"
                         b"p4\nS'caf\\xc3\\xa9'\np5\nsa.")
        assert load_plain_pickle(str(path)) == [
            dict(sent='café', split='café')]
