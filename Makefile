# Each target installs what it needs on a fresh Debian or Ubuntu (see scripts/setup); `make` alone says what there is.

DATA ?= data
RESULTS ?= docs/benchmarks/results
ONLY ?=
FUZZ_SECONDS ?= 600
SEEDS ?= 2000
FROM ?= 0
SEED ?=
REPLAY ?=
HOURS ?= 1
ROUNDS ?= 300
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test demo bench fuzz sim soak powercut crash-points env

help: ## this list
	@echo 'Culver, a messaging gateway. The first build compiles RocksDB: 12 to 30 minutes on two cores, once.'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

run: ## build and start the server on loopback (DATA=data is its directory)
	@scripts/run '$(DATA)'

test: ## everything that CI runs
	@scripts/test

demo: ## density, chat, kill and restart against a real server, as one table
	@scripts/demo

bench: ## every figure that Culver promises, into RESULTS=docs/benchmarks/results; ONLY='drain crash' picks some
	@scripts/bench '$(RESULTS)' $(ONLY)

fuzz: ## every decoder under the fuzzer, FUZZ_SECONDS=600 each
	@scripts/setup test
	@scripts/fuzz '$(FUZZ_SECONDS)'

sim: ## the simulated world: SEEDS=2000 FROM=0, or SEED=17 with its trace, or REPLAY=FILE
	@scripts/setup test
	@scripts/sim $(if $(REPLAY),replay '$(REPLAY)',$(if $(SEED),seed '$(SEED)',seeds '$(SEEDS)' '$(FROM)'))

soak: ## the simulated world for HOURS=1, from seed FROM=0 on
	@scripts/setup test
	@scripts/sim soak '$(HOURS)' '$(FROM)'

powercut: ## the power of a server's disk cut ROUNDS=300 times; ARGS='--faults off' go to the load generator
	@scripts/setup test
	@scripts/powercut '$(ROUNDS)' $(ARGS)

crash-points: ## a server that kills itself between any two steps, ROUNDS=300 times; ARGS='--at durable' likewise
	@scripts/setup test
	@scripts/crash-points '$(ROUNDS)' $(ARGS)

env: ## the environment of builds: eval "$$(make -s env)"
	@scripts/env
