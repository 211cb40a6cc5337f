# Each target installs what it needs on a fresh Debian or Ubuntu (see scripts/setup); `make` alone says what there is.

DATA ?= data
RESULTS ?= docs/benchmarks/results
ONLY ?=
FUZZ_SECONDS ?= 600
FUZZ_RUNS ?=
SEEDS ?= 2000
FROM ?= 0
SEED ?=
REPLAY ?=
HOURS ?= 1
CONNECTIONS ?= 2600000
ROUNDS ?= 300
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test demo bench density-1m density-record density-most storm-500k fuzz sim soak powercut crash-points env

help: ## this list
	@echo 'Culver, a messaging gateway. The first build compiles RocksDB: 12 to 30 minutes on two cores, once.'
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

run: ## build and start the server on loopback (DATA=data is its directory)
	@scripts/run '$(DATA)'

test: ## everything that CI runs
	@scripts/test

demo: ## density, chat, kill and restart against a real server, as one table
	@scripts/demo

bench: ## every figure that Culver promises, into RESULTS=docs/benchmarks/results; ONLY='drain crash' picks some
	@scripts/bench '$(RESULTS)' $(ONLY)

DENSITY = RESULTS='$(RESULTS)' scripts/density
# Every connection gets a message, and all are held with keep-alives.
HELD = --message --hold 10m $(ARGS)

density-1m: ## 1,000,000 connections, both ends here, held 10 minutes; what one costs beside a bare epoll program
	@REGISTER=1 $(DENSITY) density-1m 1000000 --slope-from 100000 --with-floor --quiet 60s --give-back 60s \
	  --user-bytes-max 192 --memory-ratio-max 1.05 --login-ratio-max 1.5 --idle-cpu-s-max 1.2 $(HELD)
	@$(DENSITY) density-1m-beside 1000000 --slope-from 100000 --beside-pairs 64 --beside-ratio-max 1.15 $(ARGS)

density-record: ## 2,277,846 connections, one more than WhatsApp held in 2012, in the same way
	@$(DENSITY) density-record 2277846 --slope-from 100000 $(HELD)

density-most: ## as many as fit: CONNECTIONS=2600000
	@$(DENSITY) density-most '$(CONNECTIONS)' --slope-from 100000 $(HELD)

storm-500k: ## 500,000 connections that are lost at once and come back, beside pairs that talk; both ends here
	@SCENARIO=storm SUITE=chacha20 TIMES=2 SETTINGS='[logins]\nper_s = 5300\n' $(DENSITY) storm-500k 500000 --rounds 1 \
	  --drop silent --calm 20s --crowd-nice 19 --back-within 10m --logins-per-s-min 5000 \
	  --wait-ratio-max 2 --p99-ratio-max 2 --slack-ms 1 $(ARGS)

fuzz: ## every decoder under the fuzzer, FUZZ_SECONDS=600 each, or FUZZ_RUNS=10000000
	@scripts/setup test
	@FUZZ_RUNS='$(FUZZ_RUNS)' scripts/fuzz '$(FUZZ_SECONDS)'

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
