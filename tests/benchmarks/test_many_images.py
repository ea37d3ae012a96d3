"""The benchmark of large folders measures the start, memory and continuation of small ones, too."""


def test_a_run_measures_all_figures(load_benchmark, monkeypatch, tmp_path, capsys):
    script = load_benchmark("many_images")
    monkeypatch.setattr(script, "_WARM_UP", 5)
    script.main(["--images", "30", "--folder", str(tmp_path), "--results", str(tmp_path / "figures")])
    table = (tmp_path / "figures.md").read_text()
    assert "first result of a continued run (s)" in table and "start of a continued one (s)" in table
    assert not any(path.is_dir() for path in tmp_path.iterdir())
