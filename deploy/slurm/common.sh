# shellcheck shell=bash
# Functions of the jobs and their workers, which source this file.

# Folder of the programs, and folder of the jobs' files, both shared by all nodes.
export DICO_BIN=${DICO_BIN:-$DICO_ROOT/target/release}
export DICO_JOBS=${DICO_JOBS:-$DICO_ROOT/runs/slurm}
# Restarts of a failing coordinator or worker in a row. A process that ran for HEALTHY_SECONDS
# resets the count.
export DICO_RESTARTS=${DICO_RESTARTS:-5}
readonly HEALTHY_SECONDS=600
# Seconds for which a worker keeps its state while it waits for the coordinator.
export DICO_JOIN_TIMEOUT=${DICO_JOIN_TIMEOUT:-120}
# Seconds that workers may take to exit after the coordinator.
readonly WORKER_EXIT_TIMEOUT=30
# Logs are files, without colours.
export NO_COLOR=1

log() {
    printf '%s dico: %s\n' "$(date '+%F %T')" "$*" >&2
}

fail() {
    log "error: $*"
    exit 1
}

# Waits for a child process, also across signals; returns its exit status.
wait_for_exit() {
    while kill -0 "$1" 2> /dev/null; do
        # Bash reports processes that a signal ended; the callers log the result themselves.
        wait "$1" 2> /dev/null || true
    done
    wait "$1"
}

# supervise SHOULD_RESTART COMMAND...: runs the command until it succeeds. A failed command restarts
# if the command SHOULD_RESTART succeeds.
#
# On SIGTERM it waits for the command, which has received the signal, too: Slurm signals all
# processes of a step. On SIGUSR1 it sends SIGTERM to the command. It never sends a second SIGTERM,
# which would end the coordinator and workers at once.
supervise() {
    local should_restart=$1 name=${2##*/} failures=0 is_stopping='' child='' started status
    shift
    trap 'is_stopping=yes' TERM
    trap '[[ -n $is_stopping ]] || { is_stopping=yes; [[ -z $child ]] || kill -TERM "$child"; }' USR1
    while true; do
        started=$SECONDS status=0
        (trap '' USR1; exec "$@") &
        child=$!
        wait_for_exit "$child" || status=$?
        child=''
        ((status != 0)) || return 0
        ((SECONDS - started < HEALTHY_SECONDS)) || failures=0
        if ((++failures > DICO_RESTARTS)); then
            log "error: $name failed $failures times in a row"
            return "$status"
        fi
        if [[ -z $is_stopping ]]; then
            # In the background, because bash runs traps during `wait` but not during a command.
            sleep $((2 ** failures)) &
            wait $! || true
        fi
        if [[ -n $is_stopping ]] || ! "$should_restart"; then
            return "$status"
        fi
        log "$name exited with status $status: restarting it ($failures of $DICO_RESTARTS)"
    done
}

# Prints the address by which Slurm reaches this node.
node_address() {
    local address
    address=$(scontrol show node "$SLURMD_NODENAME" | grep --only-matching --perl-regexp 'NodeAddr=\K\S+')
    getent ahostsv4 "$address" | awk '{ print $1; exit }'
}

# Succeeds if the run is finished according to its journal.
is_finished() {
    local last
    last=$("$DICO_BIN/coordinator" events --config "$DICO_CONFIG" --kind finished --kind stopped --kind failed --json |
        tail -n 1)
    [[ $last == *'"kind":"finished"'* ]]
}

# Requests the coordinator to save the state and exit.
stop_coordinator() {
    touch "$DICO_JOB/stopping"
    [[ -z $coordinator ]] || kill -USR1 "$coordinator" 2> /dev/null || true
}

# Waits for the workers to exit, and ends them at the timeout; returns the exit status of srun.
stop_workers() {
    local second
    for ((second = 0; second < WORKER_EXIT_TIMEOUT; second++)); do
        kill -0 "$1" 2> /dev/null || break
        sleep 1
    done
    kill "$1" 2> /dev/null || true
    wait_for_exit "$1"
}

# run_job OPTION_OF_SRUN...: runs the coordinator on this node and the workers by srun. The job's
# exit status is 0 if the run is finished.
run_job() {
    cd "$DICO_ROOT" || fail "the folder DICO_ROOT=$DICO_ROOT does not exist"
    export DICO_JOB=$DICO_JOBS/$SLURM_JOB_ID
    mkdir -p "$DICO_JOB"
    # Files of an earlier start of this job. Workers of that start do not have the new tokens.
    rm -f "$DICO_JOB"/{stopping,listening,join-token,admin-token}
    coordinator='' requested_action=''
    # Two minutes before the time limit: save, and requeue the job.
    trap 'requested_action=${requested_action:-requeue}; stop_coordinator' USR1
    # Slurm ends the job, and has signalled all of its processes.
    trap 'requested_action=end' TERM

    local program token
    for program in coordinator worker; do
        [[ -x $DICO_BIN/$program ]] || fail "the program $DICO_BIN/$program does not exist: build it, or set DICO_BIN"
    done
    [[ -z ${DICO_TLS_CA:-} ]] || fail "these jobs create their own tokens and support no certificates: unset DICO_TLS_CA"
    "$DICO_BIN/coordinator" validate --config "$DICO_CONFIG" || fail "the run file DICO_CONFIG=$DICO_CONFIG is not valid: see the message above"
    for token in join-token admin-token; do
        (umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$DICO_JOB/$token")
    done
    local address=${DICO_ADDRESS:-} port=${DICO_PORT:-$((20000 + SLURM_JOB_ID % 5000 * 2))}
    address=${address:-$(node_address)} || fail "this node's address is unknown: set DICO_ADDRESS"
    export DICO_COORDINATOR=http://$address:$port
    echo "$DICO_COORDINATOR" > "$DICO_JOB/address"

    log "start $((${SLURM_RESTART_COUNT:-0} + 1)) of job $SLURM_JOB_ID: $DICO_COORDINATOR, files in $DICO_JOB"
    supervise true "$DICO_BIN/coordinator" serve --config "$DICO_CONFIG" --listen "$address:$port" \
        --http "${DICO_HTTP:-127.0.0.1:$((port + 1))}" --join-token-file "$DICO_JOB/join-token" \
        --admin-token-file "$DICO_JOB/admin-token" > "$DICO_JOB/listening" &
    coordinator=$!
    until [[ -s $DICO_JOB/listening || -n $requested_action ]] || ! kill -0 "$coordinator" 2> /dev/null; do
        sleep 0.2
    done
    local workers='' first_to_exit=coordinator
    if [[ -s $DICO_JOB/listening && -z $requested_action ]]; then
        # A task that fails, or whose node fails, does not affect the other tasks.
        srun --no-kill --kill-on-bad-exit=0 --wait=0 --input=none \
            --open-mode=append --output="$DICO_JOB/worker-%t.log" "$@" "$DICO_ROOT/deploy/slurm/worker" &
        workers=$!
        while kill -0 "$coordinator" 2> /dev/null && kill -0 "$workers" 2> /dev/null; do
            wait -n "$coordinator" "$workers" || true
        done
        ! kill -0 "$coordinator" 2> /dev/null || first_to_exit=workers
    fi
    # Without workers the coordinator has nothing to wait for.
    [[ $requested_action == end ]] || stop_coordinator

    local coordinator_status=0 workers_status=0
    wait_for_exit "$coordinator" || coordinator_status=$?
    [[ -z $workers ]] || stop_workers "$workers" || workers_status=$?
    if is_finished; then
        log "the run is finished"
        exit 0
    elif [[ $requested_action == end ]]; then
        log "Slurm ends the job before the end of the run: submit it again to resume the run"
        exit $((128 + 15))
    elif [[ $requested_action == requeue ]] || [[ $first_to_exit == workers && $workers_status == 0 ]]; then
        log "requeueing the job: the run resumes when the job starts again"
        scontrol requeue "$SLURM_JOB_ID" || fail "the job cannot be requeued: submit it again to resume the run"
        exit 0
    elif [[ $first_to_exit == workers ]]; then
        fail "no worker is left (srun: status $workers_status): read $DICO_JOB/worker-*.log"
    elif [[ $coordinator_status == 0 ]]; then
        fail "the run was stopped before its end: submit the job again to resume it"
    fi
    fail "the coordinator failed (status $coordinator_status)"
}
