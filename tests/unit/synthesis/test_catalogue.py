import zipfile

from depth_node.synthesis import attribution, catalogue
import pytest

PROPERTIES = """# a comment
id=SweetHome3D#Some
id#1=Some#cup_1
name#1=Caf\\u00e9 cup
category#1=Kitchen
model#1=/some/cup/cup.obj
width#1=8.0
depth#1=9.5
height#1=\\
   10.5
creator#1=Ann | Example
id#2=Some#bookcase
name#2=Bookcase
category#2=Living room
model#2=/some/bookcase.obj
width#2=90
depth#2=30
height#2=180
modelRotation#2=1 0 0 0 0 -1 0 1 0
id#12=Some#nomodel
name#12=Broken
width#12=1
"""


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / 'BlendSwap-CC-BY.sh3f'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr(catalogue.PROPERTIES, PROPERTIES)
        file.writestr('some/cup/cup.obj', 'v 0 0 0\n')
        file.writestr('some/bookcase.obj', 'v' * (catalogue.MAX_OBJ_BYTES + 1))
    return path


def test_properties_have_unicode_escapes_and_continued_lines():
    values = catalogue.parse_properties(PROPERTIES)
    assert values['name#1'] == 'Café cup'
    assert values['height#1'] == '10.5'
    assert '# a comment' not in values


def test_assets_have_metres_licence_and_creator():
    cup, bookcase = catalogue.parse_catalogue(PROPERTIES, 'BlendSwap-CC-BY')
    assert cup.size_m == pytest.approx((0.08, 0.095, 0.105))
    assert (cup.key, cup.role, cup.licence) == ('BlendSwap-CC-BY/cup_1', 'small', 'CC-BY-3.0')
    assert cup.obj == 'some/cup/cup.obj'
    assert cup.rotation is None
    assert bookcase.rotation == (1, 0, 0, 0, 0, -1, 0, 1, 0)
    assert bookcase.role == 'wall'


@pytest.mark.parametrize(
    ('name', 'category', 'size_m', 'elevation_m', 'role'),
    [
        ('Coffee mug', 'Kitchen', (0.1, 0.08, 0.1), 0.0, 'small'),
        ('Wall type G plug', 'Miscellaneous', (0.08, 0.01, 0.08), 0.3, ''),
        ('Oriental rug', 'Living room', (2.0, 1.4, 0.01), 0.0, ''),
        ('Oak table', 'Living room', (1.6, 0.8, 0.75), 0.0, 'table'),
        ('Table tennis bat', 'Miscellaneous', (0.16, 0.28, 0.03), 0.0, 'small'),
        ('Desk lamp', 'Lights', (0.2, 0.4, 0.5), 0.0, 'floor'),
        ('Bar chair', 'Kitchen', (0.4, 0.4, 1.0), 0.0, 'chair'),
        ('Upper cabinet', 'Kitchen', (0.6, 0.35, 0.7), 1.4, 'mounted'),
        ('Female', 'Characters', (0.5, 0.3, 1.7), 0.0, 'person'),
        ('Door', 'Doors and windows', (0.9, 0.1, 2.1), 0.0, 'door'),
        ('Garage door', 'Doors and windows', (2.4, 0.1, 2.1), 0.0, ''),
        ('Dog house', 'Exterior', (0.9, 1.1, 1.0), 0.0, ''),
        ('Truck', 'Vehicles', (2.5, 8.0, 3.0), 0.0, ''),
    ],
)
def test_role_says_what_a_model_is_good_for(name, category, size_m, elevation_m, role):
    assert catalogue.role_of(name, category, size_m, elevation_m) == role


def test_loading_leaves_out_heavy_models(archive):
    assert [asset.name for asset in catalogue.load_catalogue(archive.parent)] == ['Café cup']


def test_missing_catalogue_says_what_to_install(tmp_path):
    with pytest.raises(catalogue.CatalogueError, match='sweethome3d-furniture'):
        catalogue.find_archives(tmp_path)


def test_unpacking_happens_once_and_whole(archive, tmp_path):
    cache = tmp_path / 'cache'
    folder = catalogue.unpack(archive, cache)
    assert (folder / 'some/cup/cup.obj').read_text() == 'v 0 0 0\n'
    (folder / 'mark').touch()
    assert (catalogue.unpack(archive, cache) / 'mark').exists()
    assert [path.name for path in cache.iterdir()] == [archive.stem]  # no partial folder left


def test_attribution_names_author_and_licence_of_used_models_only():
    assets = catalogue.parse_catalogue(PROPERTIES, 'BlendSwap-CC-BY')
    text = attribution.markdown(assets, {'BlendSwap-CC-BY/cup_1', 'texture/wood_1.png'})
    assert '| Café cup | Ann / Example | BlendSwap-CC-BY/cup_1 |' in text
    assert 'https://creativecommons.org/licenses/by/3.0/' in text
    assert 'wood_1.png' in text
    assert 'Bookcase' not in text


def test_attribution_refuses_models_it_cannot_credit():
    with pytest.raises(ValueError, match='Other/thing'):
        attribution.markdown([], {'Other/thing'})


def test_used_models_are_read_from_scenes_and_clip(tmp_path):
    (tmp_path / 'train' / 'room-000001').mkdir(parents=True)
    (tmp_path / 'train' / 'room-000001' / 'scene.json').write_text('{"assets": ["a/1"]}')
    (tmp_path / 'clip.json').write_text('{"assets": ["a/2"]}')
    assert attribution.used_assets([tmp_path]) == {'a/1', 'a/2'}
