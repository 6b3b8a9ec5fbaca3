"""What `python -m simvlm_jax.main` says of flags and configs that are wrong: one line, with what is wrong and the mend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROKEN = {
    "key.py": 'def get_config():\n    return {"a": 1}["b"]\n',
    "attribute.py": "def get_config():\n    return len.colour\n",
    "type.py": "def get_config():\n    return 1 + 'a'\n",
    "value.py": "def get_config():\n    try:\n        {}['b']\n    except KeyError:\n        raise ValueError('set b')\n",
    "syntax.py": "def get_config(:\n",
}


def _error(*words: str, **environment: str) -> str:
    """What a process that ends by exit code 1 leaves on stderr."""
    command = [sys.executable, "-m", "simvlm_jax.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment})
    assert done.returncode == 1 and not done.stdout, done
    return done.stderr


@pytest.mark.parametrize(
    "words, error",
    [
        (
            "configs/prefixlm.py:smoke --config.train.stepz=3",
            "the config has no field stepz; its fields are set as --config.FIELD=VALUE."
            ' Did you mean "steps" instead of "stepz"?',
        ),
        (
            "configs/prefixlm.py --config.nope.a=3",
            "the config has no field nope; its fields are set as --config.FIELD=VALUE",
        ),
        (
            "configs/prefixlm.py --config.train.steps=many",
            "flag --config.train.steps=many: invalid literal for int() with base 10: 'many'",
        ),
        ("configs/prefixlm.py steps=3", "unrecognized argument 'steps=3'; fields are set as --config.FIELD=VALUE"),
        ("configs/elsewhere.py", "config file 'configs/elsewhere.py' does not exist; name FILE.py or FILE.py:VARIANT"),
    ],
)
def test_a_wrong_flag_is_a_line(words, error):
    assert _error("--config", *words.split()) == f"error: {error}\n"


def test_a_variant_that_is_not_there_is_told_with_those_that_are():
    error = _error("--config", "configs/prefixlm.py:elsewhere")
    assert (
        error.startswith("error: prefixlm has no variant 'elsewhere'; it has photos, smoke, base,")
        and error.count("\n") == 1
    )


@pytest.mark.parametrize(
    "file, error",
    [
        ("key.py", "KeyError: 'b' (SIMVLM_TRACEBACK=1 shows where)"),
        (
            "attribute.py",
            "AttributeError: 'builtin_function_or_method' object has no attribute 'colour' (SIMVLM_TRACEBACK=1 shows where)",
        ),
        ("type.py", "TypeError: unsupported operand type(s) for +: 'int' and 'str' (SIMVLM_TRACEBACK=1 shows where)"),
        ("value.py", "set b"),
        ("syntax.py", "config file '{}' is not Python, line 1: invalid syntax"),
    ],
)
def test_an_error_in_a_config_is_its_own_line(tmp_path, file, error):
    path = tmp_path / file
    path.write_text(BROKEN[file])
    assert _error("--config", str(path)) == f"error: {error.format(path)}\n"


def test_the_whole_traceback_can_be_asked_for(tmp_path):
    path = tmp_path / "key.py"
    path.write_text(BROKEN["key.py"])
    error = _error("--config", str(path), SIMVLM_TRACEBACK="1")
    assert error.startswith("Traceback") and str(path) in error and error.endswith("KeyError: 'b'\n")
