# shellcheck shell=bash
# One start of a job, from its first second to its end or a requeue. Sourced by the scripts beside it, which set:
#
#   IRPO_RUN IRPO_JOB                   the run folder, and the job's name in it
#   WATCHED SHARDS                      the folder where parts and checkpoints appear; shards of a sample stage, else 1
#   MAX_ATTEMPTS MAX_INTERRUPTIONS      starts that may fail, or be interrupted, in a row without any new of these
#   NOTICE_SECONDS                      between the signal before a time limit and the limit
#   STEP=(srun ...) PYTHON=(...)        how a stage is started
#   NODES RANKS_PER_NODE LAUNCH         of training, and
#   HANG_MINUTES                        without a step until its ranks end themselves
#
# It leaves in $IRPO_RUN/slurm/state/JOB[.TASK]:
#
#   lease     line 1: the start that may write; line 2: "stop" when it shall end
#   count     of which job; failures and interruptions since there was something new; what there was; 1 while at work
#   last      how the start before this one ended
#   reason    why the job gave up, in words
#   spare     room for the reason on a disk that is full by then
#
# Runs on a node, outside of containers: bash, coreutils, findutils and Slurm's commands.

LEASE_SECONDS=10 # by then every process of another start has seen that it holds the lease no more
ASK_SECONDS=10
REQUEUE_TRIES=60

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }

begin() {
    local task=${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID} restart=${SLURM_RESTART_COUNT:-0}
    job=$SLURM_JOB_ID # of a task of an array, "7_3": one of them has the array's own id, which means all of them
    [[ -z $task ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    start=$job.$restart
    state=$IRPO_RUN/slurm/state/$IRPO_JOB$task
    logs=$IRPO_RUN/slurm/logs/$IRPO_JOB.$start
    owner="$start $(hostname) $$"
    stopping='' impatient='' step_pid=''
    export IRPO_CODE=$IRPO_RUN/slurm/code # stages run from a copy, whatever happens to the checkout
    trap 'ask_to_stop' USR1
    trap 'ask_to_stop' TERM
    trap 'impatient=1' USR2
    mkdir -p "$state" "$logs" || exit 1
    say "$IRPO_JOB: job $job, start $restart, on ${SLURM_JOB_NODELIST:-$(hostname)}"
    [[ -e $state/spare ]] || printf '%2000s\n' '' >"$state/spare"
    take_lease
    count_start
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + (SLURM_JOB_ID + 997 * restart) % 10000)) # another one should it be taken
    export MASTER_ADDR MASTER_PORT
    export IRPO_LEASE=$state/lease IRPO_LEASE_OWNER=$owner IRPO_RANK_LOGS=$logs
}

# one_task NAME key=value ...: a stage in one process
one_task() {
    # shellcheck disable=SC2016 # expanded by the task
    supervise 'exec "$@"' "${PYTHON[@]}" "$IRPO_CODE/irpo.py" stage "$@"
}

# all_ranks NAME key=value ...: a stage on every rank of every node
all_ranks() {
    # shellcheck disable=SC2016 # expanded by each task
    if [[ $LAUNCH == torchrun ]]; then
        supervise 'export PET_NODE_RANK=$SLURM_NODEID; exec "$@"' "${PYTHON[@]}" -m torch.distributed.run \
            --nnodes "$NODES" --nproc-per-node "$RANKS_PER_NODE" \
            --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "$IRPO_CODE/irpo.py" stage "$@"
    else
        export WORLD_SIZE=$((NODES * RANKS_PER_NODE)) LOCAL_WORLD_SIZE=$RANKS_PER_NODE
        supervise 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' \
            "${PYTHON[@]}" "$IRPO_CODE/irpo.py" stage "$@"
    fi
}

# end: the last line of a script
end() {
    rm -f "$state/count" "$state/last" "$state/reason"
    release
    say "done"
    exit 0
}

# supervise SHELL-LINE COMMAND...: a step of the job; comes back only when it went well
supervise() {
    local code
    rm -f "$logs"/failed_*
    # shellcheck disable=SC2016 # expanded by each task, in its container if there is one
    local setup='export PYTHONPATH="$IRPO_CODE${PYTHONPATH:+:$PYTHONPATH}"; '
    "${STEP[@]}" --error="$logs/node_%n.log" bash -c "$setup$1" stage "${@:2}" 2>>"$logs/srun.log" &
    step_pid=$!
    wait_for_step
    code=$?
    step_pid=''
    holds_lease || { say "another start of this job has taken over"; exit 1; }
    [[ $code == 0 ]] || conclude "$code"
}

wait_for_step() {
    while [[ -z $impatient ]]; do
        wait "$step_pid" # ends at a signal, too
        kill -0 "$step_pid" 2>/dev/null || { wait "$step_pid"; return; }
    done
    return 138
}

# A signal for this shell: the time limit is near, the job is preempted, or it is being ended.
ask_to_stop() {
    [[ -z $stopping ]] || return
    stopping=1
    say "told to end; the stage saves what it can"
    if holds_lease; then put "$state/lease" "$owner" stop; fi
    { sleep $((NOTICE_SECONDS > 40 ? NOTICE_SECONDS - 20 : NOTICE_SECONDS / 2)); kill -USR2 $$; } 2>/dev/null &
}

# ---- the lease: one start at a time

take_lease() {
    local holder said=''
    while :; do
        if ! holder=$(cat "$state/lease" 2>/dev/null); then
            put "$state/lease.$start" "$owner" || give_up "$state: cannot be written; is the disk full?"
            if ln "$state/lease.$start" "$state/lease" 2>/dev/null; then rm -f "$state/lease.$start"; return; fi
        elif [[ $holder == released* ]]; then
            put "$state/lease" "$owner" || give_up "$state: cannot be written; is the disk full?"
            nap 1
        elif is_at_work "${holder%%.*}"; then
            [[ $said ]] || say "job ${holder%%.*} is at work on this; waiting for it to end"
            said=1
            nap "$ASK_SECONDS"
            [[ -z $stopping ]] || again
            continue
        else
            say "taking over from start ${holder%% *}, which ended without a word"
            put "$state/lease" "$owner" || give_up "$state: cannot be written; is the disk full?"
            nap "$LEASE_SECONDS"
        fi
        if holds_lease; then return; fi
    done
}

holds_lease() {
    local holder
    read -r holder <"$state/lease" 2>/dev/null && [[ $holder == "$owner" ]]
}

release() { if holds_lease; then put "$state/lease" released; fi; }

# Whether Slurm says that another job is running; a controller that is away is asked again.
is_at_work() {
    local said
    [[ $1 != "$job" ]] || return 1 # an earlier start of this very job: Slurm has ended it
    while ! said=$(squeue -h -j "$1" -o %T 2>&1); do
        [[ $said != *"Invalid job id"* ]] || return 1
        nap "$ASK_SECONDS"
    done
    [[ $said == RUNNING || $said == COMPLETING || $said == SUSPENDED || $said == STOPPED ]]
}

# ---- how often

# What the stage has finished so far; a shard looks at its own parts.
marks() {
    find "$WATCHED" \( -name '*.parquet' -o -name 'step_*[0-9]' -o -name '*.manifest.json' \) -printf '%P\n' 2>/dev/null |
        awk -v shards="$SHARDS" -v shard="${SLURM_ARRAY_TASK_ID:-0}" '
            shards > 1 && match($0, /part-[0-9]+/) && substr($0, RSTART + 5, RLENGTH - 5) % shards != shard { next }
            { print }' | sort | cksum | tr ' ' _
}

read_count() {
    counted_job='' failures=0 interruptions=0 mark='' open=0
    if [[ -r $state/count ]]; then
        read -r counted_job failures interruptions mark open <"$state/count"
        [[ $counted_job == "$job" ]] || failures=0 interruptions=0 open=0
    fi
}

count_start() {
    read_count
    if [[ $open == 1 ]]; then # the start before ended with its node, or Slurm ended it at once
        count interruptions "it was ended from outside: by a requeue, or with its node"
    fi
    put "$state/count" "$job $failures $interruptions $(marks) 1"
}

# count failures|interruptions WHY: note how a start ended; give up when that has happened too often
count() {
    local now
    now=$(marks)
    if [[ $now != "$mark" ]]; then failures=0 interruptions=0; else (($1 += 1)); fi
    put "$state/count" "$job $failures $interruptions $now 0"
    put "$state/last" "$2"
    ((failures < MAX_ATTEMPTS)) || give_up "failed $failures times in a row, the last time: $2"
    ((interruptions < MAX_INTERRUPTIONS)) ||
        give_up "was interrupted $interruptions times in a row before it could finish anything, the last time: $2"
}

# ---- how it ended

# conclude CODE: the step has failed, or ended on request
conclude() {
    local reason='' permanent=''
    cat "$logs/srun.log"
    read_count
    if [[ $stopping ]] || was_ended "$1"; then
        say "ended on request"
        count interruptions "it was told to end: time limit, preemption or requeue"
    else
        explain "$1"
        say "$reason"
        say "logs: $logs"
        [[ -z $permanent ]] || give_up "$reason"
        count failures "$reason"
    fi
    again
}

# was_ended CODE: whether Slurm's signal ended the tasks, and not their neighbour's failure, after which srun ends them too
was_ended() {
    [[ $1 == 138 || $1 == 143 ]] && ! compgen -G "$logs/failed_*" >/dev/null &&
        ! grep -qE 'Exited with exit code|Killed' "$logs/srun.log" && ! grep -qs '^Timeout (' "$logs"/rank_*.log
}

# Sets reason, and permanent if another start would end the same way.
explain() {
    local found
    if found=$(grep -ls '^Timeout (' "$logs"/rank_*.log) && [[ $found ]]; then
        reason="no step for $HANG_MINUTES minutes; the stacks of its ranks stand in $logs"
    elif found=$(killed_rank) && [[ $found ]]; then
        reason="$found was killed (signal 9), most often because memory ran out"
    elif found=$(head -qn 1 "$logs"/failed_* 2>/dev/null | sort -n | head -n 1) && [[ $found ]]; then
        # TIME CLASS RANK HOST
        read -r _ class rank host <<<"$found"
        say "rank $rank on $host failed first:"
        tail -n +2 "$logs/failed_$rank" | tail -n 12
        reason="rank $rank on $host: $(tail -n 1 "$logs/failed_$rank")"
        case $class in ConfigError | DataError | ModelError | ArtifactError) permanent=1 ;; esac
    elif ! compgen -G "$logs/rank_*.log" >/dev/null; then
        found=$(grep -h . "$logs"/node_*.log "$logs/srun.log" 2>/dev/null | head -n 3 | tr '\n' ' ')
        reason="it could not be started (exit code $1): ${found:-srun said nothing}"
    else
        found=$(grep -hE '^[A-Za-z_.]+(Error|Exception): ' "$logs"/node_*.log 2>/dev/null | grep -vE 'SignalException|ChildFailed' | head -n 1)
        reason="it ended with exit code $1${found:+: $found}; its logs are in $logs"
    fi
}

# "rank 3 on node2", if the first of all ends was by signal 9: as torchrun says it, or srun
killed_rank() {
    local node line
    for node in $(seq 0 $((${NODES:-1} - 1))); do
        line=$(grep -hoE 'exitcode: -9\) local_rank: [0-9]+' "$logs/node_$node.log" 2>/dev/null | head -n 1)
        [[ -z $line ]] || { echo "rank $((node * ${RANKS_PER_NODE:-1} + ${line##* }))"; return; }
    done
    line=$(grep -m 1 -E '^srun: error: .*task' "$logs/srun.log")
    [[ $line != *Killed* || $line != *tasks\ * ]] || return 0
    [[ $line != *Killed* ]] || sed -E 's/^srun: error: ([^:]*): tasks? ([0-9]+).*/rank \2 on \1/' <<<"$line"
}

give_up() {
    say "gives up: $1"
    if ! put "$state/reason" "$1"; then
        printf '%s\n' "$1" 1<>"$state/spare" && mv -f "$state/spare" "$state/reason"
    fi
    release
    exit 1
}

# Back into the queue under the same job id, unless Slurm is ending the job already.
again() {
    local said
    release
    stopping=1 # what comes now is Slurm's answer
    for _ in $(seq "$REQUEUE_TRIES"); do
        if ! said=$(squeue -h -j "$job" -o %T 2>&1); then
            nap "$ASK_SECONDS" # the controller is away
        elif [[ $said != RUNNING ]]; then
            exit 1
        elif said=$(scontrol requeue "$job" 2>&1); then
            say "goes back into the queue"
            nap 60
            exit 1
        elif [[ $said == *disabled* ]]; then
            give_up "Slurm does not let it start again: $said"
        else
            nap "$ASK_SECONDS"
        fi
    done
    give_up "Slurm could not be asked to start it again: $said"
}

# put FILE LINE...: whole or not at all
put() {
    local new=$1.$start.$$.tmp
    { printf '%s\n' "${@:2}" >"$new" && mv -f "$new" "$1"; } 2>/dev/null && return
    rm -f "$new"
    say "$1: cannot be written; is the disk full?"
    return 1
}

# sleep that a signal ends
nap() {
    sleep "$1" &
    wait $!
}
