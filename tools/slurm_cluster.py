#!/usr/bin/env python3
"""A real Slurm with several nodes on one Debian machine, for tests and for a person who wants to try faults.

    tools/slurm_cluster.py install                     Debian's packages (root)
    tools/slurm_cluster.py start DIR [--nodes N] [--cpus C]
    tools/slurm_cluster.py exec DIR COMMAND...         a command that sees the cluster (SLURM_CONF)
    tools/slurm_cluster.py kill-node DIR NODE          a crash: slurmd, its steps and tasks
    tools/slurm_cluster.py kill-slurmd DIR NODE        the daemon alone; what it started lives on
    tools/slurm_cluster.py start-node DIR NODE
    tools/slurm_cluster.py kill-controller DIR
    tools/slurm_cluster.py start-controller DIR
    tools/slurm_cluster.py stop DIR                    ends all of it and removes DIR

Everything stands in DIR; /etc/slurm is not touched, no systemd and no cgroups are needed, and clusters in several
folders run side by side. A node is a namespace of its own (processes, mounts, host name), so that the processes of a
killed node are gone, all of them. Root only. Partitions: main; low, which is requeued for high.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged")
NEW_NAMESPACES = ("unshare", "--pid", "--mount", "--uts", "--fork", "--mount-proc")
LONGEST_FOLDER = 60
"""Characters: munge's socket below it must fit into the 107 that Linux allows."""
START_SECONDS = 30.0

os.environ["PATH"] += ":/usr/sbin:/sbin"

NODE_INIT = """
hostname=$1 hosts=$2; shift 2
echo "$hostname" >/proc/sys/kernel/hostname
mount --bind "$hosts" /etc/hosts
slurmd -N "$hostname"
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
"""
"""Process 1 of a node: starts slurmd, outlives it, and reaps what nobody waits for."""


class ClusterError(Exception):
    """Why a cluster cannot be started, in one line."""


def why_not_here() -> str | None:
    """What keeps this machine from running a cluster; None when nothing does."""
    if os.geteuid() != 0:
        return "a Slurm cluster of several nodes needs root, for its namespaces"
    probe = "echo probe >/proc/sys/kernel/hostname && mount --bind /etc/hosts /etc/hosts"
    if (
        not shutil.which("unshare")
        or subprocess.run([*NEW_NAMESPACES, "sh", "-c", probe], capture_output=True).returncode
    ):
        return "this machine gives no namespaces (unshare --pid --mount --uts)"
    if not all(map(shutil.which, PROGRAMS)) and not shutil.which("apt-get"):
        return f"Slurm is not installed ({', '.join(PROGRAMS)}), and there is no apt-get to install it with"
    return None


def install(*packages: str) -> None:
    """Install Debian's packages and keep their services from starting."""
    policy = Path("/usr/sbin/policy-rc.d")
    made_policy = not policy.exists()
    if made_policy:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    command = ["apt-get", "install", "--yes", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        if subprocess.run([*command, *packages], env=environment, capture_output=True).returncode:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, capture_output=True)
            last = subprocess.run([*command, *packages], env=environment, capture_output=True, text=True)
            if last.returncode:
                raise ClusterError(f"apt-get install {' '.join(packages)}: {last.stderr.strip()}")
    finally:
        if made_policy:
            policy.unlink()


class Cluster:
    """One cluster, whose whole state stands in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.logs = self.folder / "log"
        self._run = self.folder / "run"
        self.conf = self.folder / "etc" / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.conf)}

    @property
    def nodes(self) -> list[str]:
        return [word.split("=")[1] for word in self.conf.read_text().split() if word.startswith("NodeName=")]

    def start(self, *, num_nodes: int = 2, cpus: int = 8) -> None:
        """Bring it up; returns when every node has registered.

        Raises:
            ClusterError: With the end of the log that says why.
        """
        if len(str(self.folder)) > LONGEST_FOLDER or " " in str(self.folder):
            raise ClusterError(f"{self.folder}: wanted a path of at most {LONGEST_FOLDER} characters without blanks")
        if self.conf.exists():
            raise ClusterError(f"{self.folder}: holds a cluster already; stop it first")
        for path in (self.conf.parent, self._run, self.logs, self.folder / "spool" / "controller"):
            path.mkdir(parents=True, exist_ok=True)
        for path in (self.folder, self.conf.parent, self._run, self.logs):
            path.chmod(0o755)  # munge trusts no folder that a group can write
        try:
            self._write_configuration(num_nodes, cpus)
            self._start_munge()
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self._wait("every node registers", self._all_idle)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says that sees this cluster."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if check and done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def start_controller(self) -> None:
        self._daemon("slurmctld", "slurmctld", "-i")

    def kill_controller(self) -> None:
        self._kill("slurmctld")

    def start_node(self, node: str) -> None:
        """Start a node, or the slurmd of one whose daemon was killed."""
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        if init := self._init_of(node):
            subprocess.run(["nsenter", "-t", str(init), "-a", "slurmd", "-N", node], env=self.environment, check=True)
            return
        hosts = self.conf.parent / "hosts"
        with (self.logs / f"{node}.out").open("ab") as output:
            outer = subprocess.Popen(
                [*NEW_NAMESPACES, "--kill-child", "bash", "-c", NODE_INIT, "node-init", node, str(hosts)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self._run / f"{node}.outer").write_text(str(outer.pid))
        self._wait(f"{node} starts", lambda: self._init_of(node) is not None)

    def kill_node(self, node: str) -> None:
        """End every process of a node at once, as a power cut does."""
        if init := self._init_of(node):
            os.kill(init, signal.SIGKILL)
            self._wait(f"{node} ends", lambda: not Path(f"/proc/{init}").exists())
        (self._run / f"{node}.outer").unlink(missing_ok=True)

    def kill_slurmd(self, node: str) -> None:
        """End the daemon of a node; the steps that it started go on."""
        for pid in self._processes_of(node):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmd":
                os.kill(pid, signal.SIGKILL)

    def pids(self, node: str, *words: str) -> list[int]:
        """Processes of a node whose command line holds all of `words`."""
        return [pid for pid in self._processes_of(node) if all(word in _command_line(pid) for word in words)]

    def stop(self) -> None:
        """End all of it and remove the folder."""
        if self.conf.exists():
            for node in self.nodes:
                self.kill_node(node)
        self._kill("slurmctld")
        self._kill("munged")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False).split()
        return len(states) == len(self.nodes) and set(states) == {"idle"}

    def _start_munge(self) -> None:
        key = self.conf.parent / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        options = {"socket": "munge.sock", "pid-file": "munged.pid", "seed-file": "munged.seed"}
        places = [f"--{option}={self._run / name}" for option, name in options.items()]
        self._daemon("munged", "munged", "--force", f"--key-file={key}", f"--log-file={self.logs}/munged.log", *places)

    def _daemon(self, name: str, *command: str) -> None:
        """Start a program that goes to the background by itself and notes its process id."""
        pid_file = self._run / f"{name}.pid"
        pid_file.unlink(missing_ok=True)
        with (self.logs / f"{name}.out").open("ab") as output:
            code = subprocess.run(command, env=self.environment, stdout=output, stderr=output).returncode
        if code:
            raise ClusterError(f"{name} did not start: {self._end_of(name)}")
        self._wait(f"{name} starts", lambda: pid_file.exists() and pid_file.read_text().strip().isdecimal())

    def _kill(self, name: str) -> None:
        """SIGKILL the daemon that noted its process id under `name`, if that still is its program."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._run / f"{name}.pid").read_text())
            if name in Path(f"/proc/{pid}/comm").read_text():
                os.kill(pid, signal.SIGKILL)
                self._wait(f"{name} ends", lambda: not _is_running(pid))

    def _init_of(self, node: str) -> int | None:
        """Process 1 of a node, as seen from outside."""
        try:
            outer = int((self._run / f"{node}.outer").read_text())
            (init,) = map(int, Path(f"/proc/{outer}/task/{outer}/children").read_text().split())
        except (OSError, ValueError):
            return None
        is_ours = node in _command_line(init) and str(self.folder) in _command_line(init)
        return init if is_ours else None

    def _processes_of(self, node: str) -> list[int]:
        """Every process in the namespace of a node but its first."""
        init = self._init_of(node)
        if init is None:
            return []
        space = _pid_space(init)
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [pid for pid in pids if pid != init and _pid_space(pid) == space]

    def _wait(self, what: str, happens: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not happens():
            if time.monotonic() > deadline:
                raise ClusterError(f"{what}: not within {START_SECONDS:g} s. {self._end_of('slurmctld')}")
            time.sleep(0.05)

    def _end_of(self, name: str) -> str:
        logs = [path for path in (self.logs / f"{name}.out", self.logs / f"{name}.log") if path.exists()]
        return " / ".join(line for path in logs for line in path.read_text(errors="replace").splitlines()[-3:])

    def _write_configuration(self, num_nodes: int, cpus: int) -> None:
        host = socket.gethostname().split(".")[0]
        controller, *ports = _free_ports(num_nodes + 1)
        number = int(hashlib.sha256(str(self.folder).encode()).hexdigest(), 16)
        net = number % 200 + 20
        addresses = [f"127.77.{net}.{number}" for number in range(1, num_nodes + 1)]
        kept = [line for line in Path("/etc/hosts").read_text().splitlines() if host not in line.split()]
        names = [f"{address} node{number}" for number, address in enumerate(addresses, start=1)]
        (self.conf.parent / "hosts").write_text("\n".join([*kept, f"127.0.0.1 {host}", *names]) + "\n")
        # slurmd loads a cgroup plugin even where nothing uses one; this one looks at nothing until it is used.
        plugin = "cgroup/v1" if _version() < (24, 5) else "disabled"
        (self.conf.parent / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        nodes = [
            f"NodeName=node{number} NodeHostname=node{number} NodeAddr={address} Port={port} CPUs={cpus} RealMemory=999"
            for number, (address, port) in enumerate(zip(addresses, ports, strict=True), start=1)
        ]
        signal_when_preempted = (
            "SlurmctldParameters=preempt_send_user_signal"
            if _version() < (23, 2)
            else "PreemptParameters=send_user_signal"
        )
        self.conf.write_text(
            f"""ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s by default, 5 s at least
AuthInfo=socket={self._run}/munge.sock,cred_expire=5
StateSaveLocation={self.folder}/spool/controller
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self._run}/slurmctld.pid
SlurmdPidFile={self._run}/slurmd.%n.pid
SlurmctldLogFile={self.logs}/slurmctld.log
SlurmdLogFile={self.logs}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={self.logs}/jobs.log
MpiDefault=none
MailProg=/bin/true
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue
SlurmctldTimeout=10
SlurmdTimeout=8
BatchStartTimeout=10
MessageTimeout=5
KillWait=5
WaitTime=0
CompleteWait=0
EpilogMsgTime=0
MinJobAge=3600
# ports of jobs follow their ids, which should differ between clusters side by side
FirstJobId={number % 9000 + 1000}
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{signal_when_preempted}
"""
            + "\n".join(nodes)
            + """
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
        )


def _version() -> tuple[int, ...]:
    said = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in said.split()[-1].split(".")[:2])


def _free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens on, below those that Linux gives to clients."""
    for first in range(20000 + os.getpid() % 5000, 31000, count):
        ports = list(range(first, first + count))
        if all(_is_free(port) for port in ports):
            return ports
    raise ClusterError("no free ports between 20000 and 31000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _pid_space(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=[
        "install", "start", "exec", "kill-node", "kill-slurmd", "start-node", "kill-controller", "start-controller",
        "stop",
    ])  # fmt: skip
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=8)
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parsed = parser.parse_args()
    try:
        if parsed.action == "install":
            install(*PACKAGES)
            return 0
        if parsed.folder is None:
            parser.error("DIR is missing")
        cluster = Cluster(parsed.folder)
        if parsed.action == "start":
            cluster.start(num_nodes=parsed.nodes, cpus=parsed.cpus)
            print(f"export SLURM_CONF={cluster.conf}")
        elif parsed.action == "exec":
            return subprocess.run(parsed.words, env=cluster.environment).returncode
        elif parsed.words:
            getattr(cluster, parsed.action.replace("-", "_"))(parsed.words[0])
        else:
            getattr(cluster, parsed.action.replace("-", "_"))()
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
