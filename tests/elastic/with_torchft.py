"""A worker under torchft: a replica group of one process, which gets its state from another group.

Trains until it is killed.
"""

import torch.distributed as dist
from torchft import Manager, Optimizer, ProcessGroupGloo
from toy import StepRecorder, ToyModel


def main() -> None:
    model, recorder = ToyModel(), StepRecorder()
    # torchrun would create this store for a replica group.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(),
        load_state_dict=model.load_state_dict,
        state_dict=model.state_dict,
        min_replica_size=1,
        replica_id="toy",
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        hostname="127.0.0.1",
    )
    optimizer = Optimizer(manager, model.optimizer)
    while True:
        step = manager.current_step()
        # The gradients must stay views of the flat buffer.
        optimizer.zero_grad(set_to_none=False)
        model.compute(step, manager.participating_rank() or 0)
        manager.allreduce(model.gradient).wait()
        optimizer.step()
        if manager.current_step() > step:
            # The quorum id is not public.
            recorder.record(manager.current_step(), manager._quorum_id, manager.num_participants())


if __name__ == "__main__":
    main()
