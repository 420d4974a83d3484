"""The cache of compiled kernels."""

from engine.method.compiled import cache_folder


def test_a_change_of_any_kernel_file_makes_another_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/cache")
    (tmp_path / "outer.py").write_text("from inner import g")
    (tmp_path / "inner.py").write_text("g = 1")
    before = cache_folder(tmp_path)
    assert before == cache_folder(tmp_path) and before.startswith("/cache/")
    (tmp_path / "inner.py").write_text("g = 2")
    assert cache_folder(tmp_path) != before
