# shellcheck shell=bash
# What the jobs and their workers have in common; they source it.

# Programs, and the folder of jobs, which all nodes see.
export DICO_BIN=${DICO_BIN:-$DICO_ROOT/target/release}
export DICO_JOBS=${DICO_JOBS:-$DICO_ROOT/runs/slurm}
# How often in a row the coordinator, or a worker, is started again when it fails; after so many seconds of health a
# failure is the first again.
export DICO_RESTARTS=${DICO_RESTARTS:-5}
readonly HEALTHY=600
# Seconds for which a worker holds its state and waits for the coordinator.
export DICO_JOIN_TIMEOUT=${DICO_JOIN_TIMEOUT:-120}
# Seconds that workers may take to end when the coordinator has.
readonly FAREWELL=30
# Logs are files.
export NO_COLOR=1

say() {
    printf '%s dico: %s\n' "$(date '+%F %T')" "$*" >&2
}

fail() {
    say "error: $*"
    exit 1
}

# Waits for a child to end, whatever signals come meanwhile; its exit status.
await() {
    while kill -0 "$1" 2> /dev/null; do
        # Bash says what a signal ended; what is made of it is said elsewhere.
        wait "$1" 2> /dev/null || true
    done
    wait "$1"
}

# keep WORTHWHILE COMMAND...: runs the command until it ends well. One that fails is started again if WORTHWHILE, a
# command as well, agrees.
#
# On SIGTERM it waits for the command, which has got it, too: Slurm signals all processes of a step. On SIGUSR1 it sends
# SIGTERM to the command. For coordinator and workers a second SIGTERM would be one too many: it ends them at once.
keep() {
    local worthwhile=$1 name=${2##*/} failures=0 ending='' child='' started status
    shift
    trap 'ending=yes' TERM
    trap '[[ -n $ending ]] || { ending=yes; [[ -z $child ]] || kill -TERM "$child"; }' USR1
    while true; do
        started=$SECONDS status=0
        (trap '' USR1; exec "$@") &
        child=$!
        await "$child" || status=$?
        child=''
        ((status != 0)) || return 0
        ((SECONDS - started < HEALTHY)) || failures=0
        if ((++failures > DICO_RESTARTS)); then
            say "error: $name failed $failures times in a row"
            return "$status"
        fi
        if [[ -z $ending ]]; then
            # In the background, so that signals are heard.
            sleep $((2 ** failures)) &
            wait $! || true
        fi
        if [[ -n $ending ]] || ! "$worthwhile"; then
            return "$status"
        fi
        say "$name ended with status $status: starting it again ($failures of $DICO_RESTARTS)"
    done
}

# The address by which Slurm reaches this node.
node_address() {
    local address
    address=$(scontrol show node "$SLURMD_NODENAME" | grep --only-matching --perl-regexp 'NodeAddr=\K\S+')
    getent ahostsv4 "$address" | awk '{ print $1; exit }'
}

# Whether the run is finished, as its journal has it.
finished() {
    local last
    last=$("$DICO_BIN/coordinator" events --config "$DICO_CONFIG" --kind finished --kind stopped --kind failed --json |
        tail -n 1)
    [[ $last == *'"kind":"finished"'* ]]
}

# Asks the coordinator to save and to end.
stop() {
    touch "$DICO_JOB/stopping"
    [[ -z $coordinator ]] || kill -USR1 "$coordinator" 2> /dev/null || true
}

# Gives workers time to end, and then none; the exit status of srun.
farewell() {
    local second
    for ((second = 0; second < FAREWELL; second++)); do
        kill -0 "$1" 2> /dev/null || break
        sleep 1
    done
    kill "$1" 2> /dev/null || true
    await "$1"
}

# run_job OPTION_OF_SRUN...: runs the coordinator here and the workers by srun. The job's exit status is 0 if the run is
# finished.
run_job() {
    cd "$DICO_ROOT" || fail "there is no folder DICO_ROOT=$DICO_ROOT"
    export DICO_JOB=$DICO_JOBS/$SLURM_JOB_ID
    mkdir -p "$DICO_JOB"
    # Of an earlier start of this job, whose workers do not know the new tokens.
    rm -f "$DICO_JOB"/{stopping,listening,join-token,admin-token}
    coordinator='' wish=''
    # Two minutes are left: save, and go back into the queue.
    trap 'wish=${wish:-requeue}; stop' USR1
    # Slurm ends the job, and has told all of its processes.
    trap 'wish=end' TERM

    local program token
    for program in coordinator worker; do
        [[ -x $DICO_BIN/$program ]] || fail "there is no program $DICO_BIN/$program: build it, or set DICO_BIN"
    done
    [[ -z ${DICO_TLS_CA:-} ]] || fail "these jobs use tokens of their own and no certificates: unset DICO_TLS_CA"
    "$DICO_BIN/coordinator" validate --config "$DICO_CONFIG" || fail "DICO_CONFIG=$DICO_CONFIG cannot be run"
    for token in join-token admin-token; do
        (umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$DICO_JOB/$token")
    done
    local address=${DICO_ADDRESS:-} port=${DICO_PORT:-$((20000 + SLURM_JOB_ID % 5000 * 2))}
    address=${address:-$(node_address)} || fail "this node's address is unknown: set DICO_ADDRESS"
    export DICO_COORDINATOR=http://$address:$port
    echo "$DICO_COORDINATOR" > "$DICO_JOB/address"

    say "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID: $DICO_COORDINATOR, files in $DICO_JOB"
    keep true "$DICO_BIN/coordinator" serve --config "$DICO_CONFIG" --listen "$address:$port" \
        --http "${DICO_HTTP:-127.0.0.1:$((port + 1))}" --join-token-file "$DICO_JOB/join-token" \
        --admin-token-file "$DICO_JOB/admin-token" > "$DICO_JOB/listening" &
    coordinator=$!
    until [[ -s $DICO_JOB/listening || -n $wish ]] || ! kill -0 "$coordinator" 2> /dev/null; do
        sleep 0.2
    done
    local workers='' first=coordinator
    if [[ -s $DICO_JOB/listening && -z $wish ]]; then
        # A task that ends, or is lost with its node, does not affect the others.
        srun --no-kill --kill-on-bad-exit=0 --wait=0 --input=none \
            --open-mode=append --output="$DICO_JOB/worker-%t.log" "$@" "$DICO_ROOT/deploy/slurm/worker" &
        workers=$!
        while kill -0 "$coordinator" 2> /dev/null && kill -0 "$workers" 2> /dev/null; do
            wait -n "$coordinator" "$workers" || true
        done
        ! kill -0 "$coordinator" 2> /dev/null || first=workers
    fi
    # Where no worker is left there is nothing to wait for.
    [[ $wish == end ]] || stop

    local coordinator_status=0 workers_status=0
    await "$coordinator" || coordinator_status=$?
    [[ -z $workers ]] || farewell "$workers" || workers_status=$?
    if finished; then
        say "the run is finished"
        exit 0
    elif [[ $wish == end ]]; then
        say "Slurm ends the job before the end of the run; the same run file goes on from there"
        exit $((128 + 15))
    elif [[ $wish == requeue ]] || [[ $first == workers && $workers_status == 0 ]]; then
        say "asked to go: back into the queue"
        scontrol requeue "$SLURM_JOB_ID" || fail "the job cannot be requeued: submit it again, and the run goes on"
        exit 0
    elif [[ $first == workers ]]; then
        fail "no worker is left (srun: status $workers_status): $DICO_JOB/worker-*.log say why"
    elif [[ $coordinator_status == 0 ]]; then
        fail "the run was stopped before its end: submit it again, and it goes on"
    fi
    fail "the coordinator failed (status $coordinator_status)"
}
