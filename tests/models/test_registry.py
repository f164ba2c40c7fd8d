import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thinkml.checkpoint import filesystem
from thinkml.errors import ConfigError, ModelFileError
from thinkml.models import registry as module
from thinkml.models import registry_entry as version_file
from thinkml.models.registry import Registry, parse

HOSTILE = [
    '', '.', '..', '.hidden', 'a/b', '../a', '/a', 'a\\b', '..\\a', 'a b', 'a\n', '-a', '_a',
    'x' * 101, 'x' * 200, 'a\0', '\0', 'ä', '\u0663', 'C:a', '~', 'a*', 'a%2fb',
]  # fmt: skip


def save(registry, name, count=1):
    for _ in range(count):
        path = registry.reserve(name)
        path.mkdir()
        (path / 'file').write_text(f'{name} {path.name}')
    return path


def everything(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in Path(folder).rglob('*')
    }


@pytest.fixture
def registry(tmp_path):
    """Returns a registry where 'digits' has the versions 1, 2 and 3, and 'production' is 2."""
    registry = Registry(tmp_path / 'models')
    save(registry, 'digits', 3)
    registry.tag('digits@2', 'production')
    return registry


def file_of(registry, name='digits'):
    return registry.root / name / 'versions.json'


# References


@pytest.mark.parametrize(
    ('reference', 'parts'),
    [
        ('digits', ('digits', None)),
        ('digits@latest', ('digits', None)),
        ('digits@3', ('digits', 3)),
        ('digits@production', ('digits', 'production')),
        ('3@4', ('3', 4)),
        ('a.b-c_d@1.0', ('a.b-c_d', '1.0')),
        ('x' * 100, ('x' * 100, None)),
    ],
)
def test_references_are_taken_apart(reference, parts):
    assert parse(reference) == parts


@pytest.mark.parametrize(
    'reference',
    [*HOSTILE, 'a@b@c', '@', 'a@', '@3', 'a@0', 'a@03', 'a@-1', 'a@\u0663', 'a@' + '9' * 5000,
     *(f'a@{name}' for name in HOSTILE)],
)  # fmt: skip
def test_what_is_no_reference_is_refused(reference, registry):
    before = everything(registry.root.parent)
    for call in (parse, registry.locate, registry.delete, lambda r: registry.tag(r, 'best')):
        with pytest.raises(ModelFileError, match=r'^reference: got '):
            call(reference)
    assert everything(registry.root.parent) == before


@pytest.mark.parametrize('value', [None, 3, b'digits', Path('digits'), ['digits']])
def test_only_text_is_a_reference(value, registry):
    with pytest.raises(ModelFileError, match=r'^reference: got '):
        parse(value)
    with pytest.raises(ModelFileError, match=r'^name: got '):
        registry.versions(value)
    with pytest.raises(ModelFileError, match=r'^tag: got '):
        registry.tag('digits', value)


@pytest.mark.parametrize('name', [*HOSTILE, 'a@b', 'a@1'])
def test_hostile_names_are_refused_and_nothing_is_written(name, registry):
    before = everything(registry.root.parent)
    calls = (
        registry.reserve,
        registry.versions,
        registry.tags,
        lambda name: registry.untag(name, 'production'),
    )
    for call in calls:
        with pytest.raises(ModelFileError, match=r'^name: got '):
            call(name)
    assert everything(registry.root.parent) == before


@pytest.mark.parametrize('tag', [*HOSTILE, 'a@b', 'latest', '3', '007'])
def test_hostile_tags_are_refused(tag, registry):
    before = everything(registry.root.parent)
    with pytest.raises(ModelFileError, match=r'^tag: '):
        registry.tag('digits@1', tag)
    with pytest.raises(ModelFileError, match=r'^tag: '):
        registry.untag('digits', tag)
    assert everything(registry.root.parent) == before


@pytest.mark.parametrize('root', ['a\0b', 3, None, b'models'])
def test_a_root_that_is_no_path_is_refused(root):
    with pytest.raises(ConfigError, match=r'^root: got '):
        Registry(root)


# Listing


def test_an_empty_registry_has_no_names(tmp_path):
    registry = Registry(tmp_path / 'none')
    assert registry.names() == []
    assert not registry.root.exists()
    with pytest.raises(ModelFileError, match=r'^name: got .digits.*holds no models'):
        registry.locate('digits')


def test_names_versions_and_tags_are_listed_in_order(registry):
    save(registry, 'Cats')
    registry.tag('digits', 'best')
    assert registry.names() == ['Cats', 'digits']
    assert registry.versions('digits') == [1, 2, 3]
    assert list(registry.tags('digits').items()) == [('best', 3), ('production', 2)]
    assert registry.tags('Cats') == {}
    assert json.loads(file_of(registry).read_text()) == {
        'format': 1,
        'next': 4,
        'tags': {'best': 3, 'production': 2},
    }


def test_versions_are_ordered_as_numbers(tmp_path):
    registry = Registry(tmp_path)
    save(registry, 'a', 11)
    assert registry.versions('a') == list(range(1, 12))
    assert registry.locate('a').name == '11'


def test_what_is_no_version_is_not_listed(registry):
    folder = registry.root / 'digits'
    for name in ('.4.abc.tmp', '05', '0', '-1', 'x', '\u0663', '1' * 30):
        (folder / name).mkdir()
    (folder / '6').write_text('a file')
    (folder / '7').symlink_to(folder / '1')
    assert registry.versions('digits') == [1, 2, 3]
    with pytest.raises(ModelFileError, match='no version 7'):
        registry.locate('digits@7')


def test_what_is_no_name_is_not_listed(registry, tmp_path):
    (registry.root / 'empty').mkdir()
    (registry.root / 'file').write_text('x')
    shutil.copytree(registry.root / 'digits', registry.root / '.hidden')
    shutil.copytree(registry.root / 'digits', registry.root / 'with space')
    assert registry.names() == ['digits']


# Versions


def test_reserved_numbers_are_taken_at_once_and_never_again(registry):
    assert registry.reserve('digits') == registry.root / 'digits' / '4'  # a save that fails
    assert not (registry.root / 'digits' / '4').exists()
    assert save(registry, 'digits').name == '5'
    registry.delete('digits@5')
    assert registry.reserve('digits').name == '6'
    assert registry.versions('digits') == [1, 2, 3]


@pytest.mark.parametrize('damage', ['removed', 'old'])
def test_a_directory_that_exists_is_never_reserved(registry, damage):
    old = file_of(registry).read_bytes()
    save(registry, 'digits', 3)
    if damage == 'removed':
        file_of(registry).unlink()
    else:
        file_of(registry).write_bytes(old)
    assert registry.reserve('digits').name == '7'


def test_a_version_that_was_copied_in_can_be_tagged_and_its_number_is_never_used_again(registry):
    folder = registry.root / 'digits'
    shutil.copytree(folder / '1', folder / '9')
    registry.tag('digits', 'best')
    assert registry.tags('digits')['best'] == 9
    registry.untag('digits', 'best')
    shutil.copytree(folder / '1', folder / '20')
    registry.delete('digits@20')
    assert registry.reserve('digits').name == '21'


RESERVE = """
import sys
from thinkml.models.registry import Registry
registry = Registry(sys.argv[1])
print('ready', flush=True)
sys.stdin.readline()
for _ in range(20):
    registry.reserve('digits').mkdir()
"""


def test_two_processes_never_get_the_same_number(tmp_path):
    command = [sys.executable, '-c', RESERVE, str(tmp_path)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0  # mkdir fails where both got one number
    assert Registry(tmp_path).versions('digits') == list(range(1, 41))


def run_threads(*calls):
    errors = []

    def guarded(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_that_reserve_and_tag_lose_nothing(tmp_path):
    registry = Registry(tmp_path)

    def work(name):
        for _ in range(10):
            save(registry, 'digits')
            registry.tag('digits@1', f'{name}-{len(registry.tags("digits"))}')

    run_threads(*(lambda name=name: work(name) for name in 'abc'))
    assert registry.versions('digits') == list(range(1, 31))
    assert {tag[0] for tag in registry.tags('digits')} == set('abc')


def test_a_lock_on_a_folder_that_was_just_deleted_does_not_count(registry, monkeypatch):
    lock, first = filesystem.lock, []

    def late(folder):
        descriptor = lock(folder)
        if not first:
            first.append(folder.rename(folder.with_name('gone')))
        return descriptor

    monkeypatch.setattr(filesystem, 'lock', late)
    assert registry.reserve('digits') == registry.root / 'digits' / '1'
    assert json.loads(file_of(registry, 'gone').read_text())['next'] == 4


def test_a_folder_that_is_deleted_while_it_is_made_is_made_again(registry, monkeypatch):
    mkdir, first = Path.mkdir, []

    def late(path, *args, **options):
        if path.name == 'digits' and not first:
            first.append(path.rename(path.with_name('gone')))
            raise FileExistsError  # Python looks after the system whether it is a folder
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, 'mkdir', late)
    assert registry.reserve('digits').name == '1'


def test_names_can_be_deleted_while_others_reserve(tmp_path):
    registry = Registry(tmp_path)

    def reserve():
        for _ in range(100):
            registry.reserve('digits')

    def delete():
        for _ in range(100):
            registry.reserve('digits')
            registry.delete('digits')

    run_threads(reserve, delete)
    assert set(os.listdir(tmp_path)) <= {'digits'}


@pytest.mark.skipif(filesystem.fcntl is None, reason='folders can not be locked here')
def test_waiting_for_a_lock_ends_with_an_error(registry, monkeypatch):
    monkeypatch.setattr(module, 'WAIT_SECONDS', 0.05)
    held = filesystem.lock(registry.root / 'digits')
    try:
        calls = (
            lambda: registry.reserve('digits'),
            lambda: registry.tag('digits', 'best'),
            lambda: registry.untag('digits', 'production'),
            lambda: registry.delete('digits@1'),
            lambda: registry.delete('digits'),
        )
        for call in calls:
            with pytest.raises(ModelFileError, match='another process holds'):
                call()
        assert registry.locate('digits@production').name == '2'  # readers need no lock
    finally:
        filesystem.unlock(held)
    assert registry.reserve('digits').name == '4'


def test_it_works_where_folders_cant_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, 'lock', lambda folder: -1)
    registry = Registry(tmp_path)
    save(registry, 'digits', 2)
    registry.tag('digits', 'best')
    registry.delete('digits@1')
    assert registry.locate('digits@best').name == '2'


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs /proc')
def test_no_descriptor_is_left_open(registry):
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(5):
        save(registry, 'digits')
        registry.tag('digits', 'best')
        with pytest.raises(ModelFileError):
            registry.delete('digits@best')
        registry.untag('digits', 'best')
        registry.delete('digits@latest')
    assert len(os.listdir('/proc/self/fd')) == before


# Locating


def test_versions_are_located_by_number_tag_and_as_the_latest(registry):
    folder = registry.root / 'digits'
    assert registry.locate('digits') == registry.locate('digits@latest') == folder / '3'
    assert registry.locate('digits@1') == folder / '1'
    assert registry.locate('digits@production') == folder / '2'


def test_a_reserved_version_is_not_the_latest_before_it_exists(registry):
    registry.reserve('digits')
    assert registry.locate('digits').name == '3'


def test_errors_say_what_there_is(registry):
    with pytest.raises(ModelFileError, match=r"^name: got 'digit', .*Did you mean 'digits'\?"):
        registry.locate('digit@3')
    with pytest.raises(ModelFileError, match=r"^tag: got 'prodution'.*Did you mean 'production'\?"):
        registry.locate('digits@prodution')
    with pytest.raises(ModelFileError, match=r'^reference: digits@7: .*versions 1, 2, 3'):
        registry.locate('digits@7')
    with pytest.raises(ModelFileError, match='production is 2'):
        registry.locate('digits@7')
    registry.reserve('new')
    with pytest.raises(ModelFileError, match=r'^reference: new: .*no versions'):
        registry.locate('new')
    for call in (registry.versions, registry.tags, lambda name: registry.untag(name, 'production')):
        with pytest.raises(ModelFileError, match=r"^name: got 'digit', .*Did you mean 'digits'\?"):
            call('digit')


def test_long_lists_of_versions_are_cut(tmp_path):
    registry = Registry(tmp_path)
    save(registry, 'a')
    for number in range(2, 2000):
        (tmp_path / 'a' / str(number)).mkdir()
    with pytest.raises(ModelFileError, match=r'1999') as caught:
        registry.locate('a@5000')
    assert len(str(caught.value)) < 500


def test_a_tag_on_a_version_that_was_removed_by_hand_is_an_error(registry):
    shutil.rmtree(registry.root / 'digits' / '2')
    with pytest.raises(ModelFileError, match=r'^reference: digits@production: .*no version 2'):
        registry.locate('digits@production')
    registry.tag('digits@3', 'production')
    assert registry.locate('digits@production').name == '3'


# Tags


def test_tags_move_and_go(registry):
    registry.tag('digits', 'production')
    assert registry.tags('digits') == {'production': 3}
    registry.tag('digits@production', 'best')
    registry.untag('digits', 'production')
    assert registry.tags('digits') == {'best': 3}
    with pytest.raises(ModelFileError, match=r"^tag: got 'bost'.*Did you mean 'best'\?"):
        registry.untag('digits', 'bost')


@pytest.mark.parametrize('reference', ['digits@9', 'digits@none', 'other'])
def test_only_versions_that_exist_are_tagged(registry, reference):
    before = everything(registry.root)
    with pytest.raises(ModelFileError):
        registry.tag(reference, 'best')
    assert everything(registry.root) == before


def test_readers_see_the_old_or_the_new_place_of_a_tag(registry):
    seen, done = set(), threading.Event()

    def move():
        for turn in range(100):
            registry.tag(f'digits@{1 + turn % 2}', 'production')
        done.set()

    def look():
        while not done.is_set():
            seen.add(registry.locate('digits@production').name)
            assert registry.tags('digits')['production'] in (1, 2)

    run_threads(move, look)
    assert seen <= {'1', '2'}


def test_a_reader_follows_a_tag_that_moves_while_its_old_version_is_deleted(registry, monkeypatch):
    read, moved = module.read, []

    def late(file):
        versions = read(file)
        if not moved:
            moved.append(True)
            registry.tag('digits@3', 'production')
            registry.delete('digits@2')
        return versions

    monkeypatch.setattr(module, 'read', late)
    assert registry.locate('digits@production').name == '3'


KILLED = """
import os, signal, sys
from thinkml.models.registry import Registry
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Registry(sys.argv[1]).tag('digits@3', 'production')
"""


@pytest.mark.skipif(os.name != 'posix', reason='needs SIGKILL')
def test_a_kill_between_write_and_rename_leaves_the_old_tags(registry):
    before = file_of(registry).read_bytes()
    killed = subprocess.run([sys.executable, '-c', KILLED, str(registry.root)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert file_of(registry).read_bytes() == before
    assert registry.tags('digits') == {'production': 2}
    assert registry.versions('digits') == [1, 2, 3]
    assert save(registry, 'digits').name == '4'  # the lock is free
    registry.tag('digits@4', 'production')
    assert registry.locate('digits@production').name == '4'


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(registry, monkeypatch):
    before = everything(registry.root)

    def fail(*_):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(ModelFileError, match='No space left on device'):
        registry.tag('digits@3', 'production')
    assert everything(registry.root) == before


def test_more_tags_than_can_be_read_again_are_refused(registry, monkeypatch):
    monkeypatch.setattr(version_file, 'MAX_BYTES', 200)
    with pytest.raises(ModelFileError, match=r'versions\.json.*at most 200'):
        for number in range(100):
            registry.tag('digits', f'tag-{number}')
    assert registry.locate('digits@production').name == '2'


# Deleting


def test_a_version_is_deleted_and_the_others_stay(registry):
    registry.delete('digits@1')
    assert registry.versions('digits') == [2, 3]
    registry.delete('digits@latest')
    assert registry.versions('digits') == [2]
    assert registry.tags('digits') == {'production': 2}
    assert sorted(os.listdir(registry.root / 'digits')) == ['2', 'versions.json']


@pytest.mark.parametrize('reference', ['digits@2', 'digits@production', 'digits'])
def test_what_a_tag_names_is_not_deleted(registry, reference):
    before = everything(registry.root)
    with pytest.raises(ModelFileError, match=r"'production'.*untag\('digits', 'production'\)"):
        registry.delete(reference)
    assert everything(registry.root) == before
    registry.untag('digits', 'production')
    registry.delete('digits@2')
    assert registry.versions('digits') == [1, 3]


def test_the_latest_is_not_deleted_while_it_has_a_tag(registry):
    registry.tag('digits', 'best')
    with pytest.raises(ModelFileError, match='best'):
        registry.delete('digits@latest')


def test_a_name_alone_deletes_all_of_it(registry):
    save(registry, 'other')
    registry.untag('digits', 'production')
    registry.delete('digits')
    assert registry.names() == ['other']
    assert os.listdir(registry.root) == ['other']


@pytest.mark.parametrize('reference', ['digits@9', 'digits@none', 'other', 'digits@4'])
def test_what_is_not_there_is_not_deleted(registry, reference):
    registry.reserve('digits')  # version 4, which is not there yet
    before = everything(registry.root)
    with pytest.raises(ModelFileError):
        registry.delete(reference)
    assert everything(registry.root) == before


def test_a_name_whose_folder_holds_something_else_is_not_deleted(registry):
    (registry.root / 'digits' / 'notes.txt').write_text('mine')
    registry.untag('digits', 'production')
    with pytest.raises(ModelFileError, match=r'notes\.txt'):
        registry.delete('digits')
    assert (registry.root / 'digits' / 'notes.txt').read_text() == 'mine'
    registry.delete('digits@1')


def test_what_a_killed_delete_left_is_removed_by_the_next(registry, monkeypatch):
    monkeypatch.setattr(shutil, 'rmtree', lambda *_, **__: None)
    registry.delete('digits@1')
    monkeypatch.undo()
    assert registry.versions('digits') == [2, 3]
    assert len(os.listdir(registry.root / 'digits')) == 4
    registry.delete('digits@3')
    assert sorted(os.listdir(registry.root / 'digits')) == ['2', 'versions.json']


# Links, foreign folders and damaged files


def test_a_link_never_leads_out_of_the_root(registry, tmp_path):
    outside = Registry(tmp_path / 'outside')
    save(outside, 'secret')
    before = everything(outside.root)
    (registry.root / 'link').symlink_to(outside.root / 'secret')
    (registry.root / 'dangling').symlink_to(tmp_path / 'none')
    calls = (
        registry.reserve,
        registry.versions,
        registry.tags,
        registry.locate,
        registry.delete,
        lambda name: registry.locate(f'{name}@1'),
        lambda name: registry.delete(f'{name}@1'),
        lambda name: registry.tag(f'{name}@1', 'best'),
        lambda name: registry.untag(name, 'best'),
    )
    for name in ('link', 'dangling'):
        for call in calls:
            with pytest.raises(ModelFileError, match=r'^name: .* is a link'):
                call(name)
    assert registry.names() == ['digits']
    assert everything(outside.root) == before
    assert not (tmp_path / 'none').exists()


def test_a_file_in_the_place_of_a_name_is_an_error(registry):
    (registry.root / 'file').write_text('x')
    with pytest.raises(ModelFileError, match='file'):
        registry.reserve('file')
    with pytest.raises(ModelFileError):
        registry.locate('file')
    registry = Registry(registry.root / 'file')
    with pytest.raises(ModelFileError, match='file'):
        registry.names()
    with pytest.raises(ModelFileError, match='file'):
        registry.reserve('a')


def test_a_folder_that_holds_something_else_does_not_become_a_name(registry):
    folder = registry.root / 'mine'
    folder.mkdir()
    (folder / 'manifest.json').write_text('{}')
    with pytest.raises(ModelFileError, match=r'^name: .*manifest\.json'):
        registry.reserve('mine')
    assert os.listdir(folder) == ['manifest.json']


GOOD = {'format': 1, 'next': 4, 'tags': {}}


@pytest.mark.parametrize(
    'content',
    [
        b'', b'{', b'null', b'[]', b'\xff\xfe', b'[' * 100_000, b'\xef\xbb\xbf{}', b'9' * 5000,
        b'{"format": 1, "next": NaN, "tags": {}}',
        *(json.dumps(value).encode() for value in (
            {}, {'format': 1, 'next': 4}, {**GOOD, 'more': 1}, {**GOOD, 'format': True},
            {**GOOD, 'next': 0}, {**GOOD, 'next': 1.5}, {**GOOD, 'next': True},
            {**GOOD, 'next': '4'}, {**GOOD, 'next': 10**30}, {**GOOD, 'tags': []},
            {**GOOD, 'tags': {'best': 4}}, {**GOOD, 'tags': {'best': 0}},
            {**GOOD, 'tags': {'best': '../1'}}, {**GOOD, 'tags': {'best': True}},
            {**GOOD, 'tags': {'../x': 1}}, {**GOOD, 'tags': {'latest': 1}},
            {**GOOD, 'tags': {'3': 1}},
        )),
        json.dumps(GOOD).encode() + b' ' * 2**20,
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_left_as_it_is(registry, content):
    file_of(registry).write_bytes(content)
    calls = (
        lambda: registry.locate('digits'),
        lambda: registry.locate('digits@1'),
        lambda: registry.tags('digits'),
        lambda: registry.reserve('digits'),
        lambda: registry.tag('digits@1', 'best'),
        lambda: registry.delete('digits@1'),
        lambda: registry.delete('digits'),
    )
    for call in calls:
        with pytest.raises(ModelFileError, match=r'^name: .*versions\.json'):
            call()
    assert file_of(registry).read_bytes() == content
    assert len(os.listdir(registry.root / 'digits')) == 4
    assert registry.names() == ['digits']


def test_a_newer_format_says_so(registry):
    file_of(registry).write_text(json.dumps({'format': 2, 'anything': 1}))
    with pytest.raises(ModelFileError, match=r'versions\.json.*format 2.*newer ThinkML'):
        registry.tags('digits')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_pipe_or_a_link_in_the_place_of_the_file_is_not_read(registry, tmp_path):
    file = file_of(registry)
    file.rename(tmp_path / 'elsewhere.json')
    os.mkfifo(file)
    with pytest.raises(ModelFileError, match=r'versions\.json'):
        registry.tags('digits')
    file.unlink()
    file.symlink_to(tmp_path / 'elsewhere.json')
    with pytest.raises(ModelFileError, match=r'versions\.json'):
        registry.tags('digits')
