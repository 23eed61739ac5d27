"""A worker under torchft: a replica group of one process, which takes its state from the others, until it is ended."""

import torch.distributed as dist
from torchft import Manager, Optimizer, ProcessGroupGloo
from toy import Record, Toy


def main() -> None:
    toy, record = Toy(), Record()
    # What torchrun would give a replica group that it starts.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(),
        load_state_dict=toy.load_state_dict,
        state_dict=toy.state_dict,
        min_replica_size=1,
        replica_id="toy",
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        hostname="127.0.0.1",
    )
    optimizer = Optimizer(manager, toy.optimizer)
    while True:
        step = manager.current_step()
        # The gradients are views of the flat buffer and have to stay there.
        optimizer.zero_grad(set_to_none=False)
        toy.compute(step, manager.participating_rank() or 0)
        manager.allreduce(toy.gradient).wait()
        optimizer.step()
        if manager.current_step() > step:
            # The quorum's number has no public name.
            record.applied(manager.current_step(), manager._quorum_id, manager.num_participants())


if __name__ == "__main__":
    main()
