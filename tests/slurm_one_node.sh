#!/bin/bash
# SLURM on this machine alone, for tests/test_slurm.py: slurm_one_node.sh start|stop
# Needs root and the packages slurm-wlm and munge (Debian, Ubuntu: apt-get install slurm-wlm munge).
# No systemd, no accounting database; one partition named "test" that takes all cores.
set -e
conf=/etc/slurm/slurm.conf
state=/var/lib/slurm-one-node

start() {
  mkdir -p /run/munge /etc/slurm "$state"/{ctld,d}
  [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
  chown -R munge:munge /etc/munge /run/munge /var/lib/munge /var/log/munge
  chmod 400 /etc/munge/munge.key
  chmod 755 /run/munge
  pgrep -x munged >/dev/null || runuser -u munge -- munged
  cat >"$conf" <<EOF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
InactiveLimit=0
KillWait=30
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem/ {print $2}')
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
  pgrep -x slurmctld >/dev/null || slurmctld
  pgrep -x slurmd >/dev/null || slurmd
  for _ in $(seq 60); do
    sinfo -h -o %T 2>/dev/null | grep -qE 'idle|mixed' && break
    sleep 0.5
  done
  sinfo
}

stop() {
  for name in slurmd slurmctld; do
    [ ! -s "$state/$name.pid" ] || kill "$(cat "$state/$name.pid")"
  done
  [ ! -s /run/munge/munged.pid ] || kill "$(cat /run/munge/munged.pid)"
}

"$1"
