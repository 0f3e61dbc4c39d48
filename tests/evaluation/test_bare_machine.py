import subprocess
import sys

ABSENT = ("yaml", "click", "rich", "rich_click", "matplotlib", "zarr", "dask", "hyperspy", "rsciio", "skimage",
          "jinja2", "jsonschema", "snakemake", "tifffile", "seaborn", "pyarrow", "h5py")  # fmt: skip


def test_training_and_evaluation_need_torch_numpy_scipy_pandas_safetensors_alone():
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {ABSENT!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import atomdiffuser.training.__main__, atomdiffuser.evaluation.__main__, atomdiffuser.model
from pathlib import Path
from atomdiffuser.training.settings import read_settings
read_settings(Path('config/train.yaml'), 'gpu')
from atomdiffuser.training.log import TrainingLog
import tempfile
log = TrainingLog(Path(tempfile.mkdtemp()), 0)
log.write('log', 1, 0.1, dict(loss=1.0))
log.plot()
import pandas
from atomdiffuser.evaluation.page import write_page
table = pandas.DataFrame(dict(a=[1.0]))
write_page(Path(tempfile.mkdtemp()), 't', {{}}, [dict(title='t', text='', table=table, name='t', figure=None)])
print('fine')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(_root()))
    assert done.stdout.strip() == "fine", done.stderr


def _root():
    from pathlib import Path

    return Path(__file__).parents[2]
