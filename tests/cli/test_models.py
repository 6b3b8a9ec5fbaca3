"""`simvlm models`: what is listed where nothing is named."""

import json

from simvlm_jax.cli import main, models


def test_configs_of_the_current_folder_are_not_run_unless_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    for name in ("parts", "mine"):
        (tmp_path / "configs" / f"{name}.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "describe", lambda name: {"config": name})
    assert main(["models", "--json"]) == 0
    listed = [json.loads(line)["config"] for line in capsys.readouterr().out.splitlines()]
    assert any("prefixlm" in name for name in listed) and not any("mine" in name for name in listed)
