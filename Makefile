.PHONY: lint
PY := .venv/bin/python
MYPY_TREE := build/mypy

lint: ## ruff, mypy, clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@rm -rf $(MYPY_TREE) && mkdir -p $(MYPY_TREE)
	@cp -as $(CURDIR)/pft_bench $(MYPY_TREE)/ && cp -as $(CURDIR)/reference $(MYPY_TREE)/pft_bench/
	@mkdir -p $(MYPY_TREE)/pft_bench/kernels && cp -as $(CURDIR)/kernels/triton $(MYPY_TREE)/pft_bench/kernels/
	cd $(MYPY_TREE) && $(CURDIR)/$(PY) -m mypy -p pft_bench --config-file $(CURDIR)/pyproject.toml
	git ls-files '*.cpp' '*.hpp' '*.h' '*.cu' '*.cuh' | xargs -r $(dir $(PY))clang-format --dry-run --Werror
