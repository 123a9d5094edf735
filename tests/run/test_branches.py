from stepcache.run.branches import Branches


def step(branches, names, calls=1):
    """The slots of one step in which the guider has these branches, and `calls` U-Net calls each."""
    branches.prepare(names)
    slots = []
    for i, _ in enumerate(names):
        branches.enter()
        for j in range(calls):
            if i == j == 0:
                branches.begin_step()
            slots.append(branches.slot(64))
    branches.leave()
    return slots


def unnamed(branches, calls, limit=64):
    branches.begin_step()
    return [branches.slot(limit) for _ in range(calls)]


def test_without_a_guider_a_slot_is_the_number_of_the_call():
    branches = Branches()
    assert unnamed(branches, 3) == [0, 1, 2]
    assert unnamed(branches, 2) == [0, 1]


def test_calls_beyond_the_limit_share_it():
    branches = Branches()
    assert unnamed(branches, 5, limit=3) == [0, 1, 2, 3, 3]


def test_a_branch_keeps_its_slot_where_others_are_dropped_or_stand_in_another_order():
    branches = Branches()
    assert step(branches, ["cond", "uncond", "skip"]) == [0, 1, 2]
    assert step(branches, ["cond", "skip"]) == [0, 2]
    assert step(branches, ["uncond", "cond"]) == [1, 0]
    assert step(branches, ["cond", "other"]) == [0, 3]


def test_several_calls_of_a_branch_have_a_slot_each():
    branches = Branches()
    assert step(branches, ["cond", "uncond"], calls=2) == [0, 1, 2, 3]
    assert step(branches, ["uncond"], calls=2) == [2, 3]


def test_a_name_holds_for_its_step_alone():
    branches = Branches()
    assert step(branches, ["cond", "uncond"]) == [0, 1]
    # The next step is not the guider's: these calls may be anything.
    assert unnamed(branches, 2) == [2, 3]


def test_calls_whose_branch_is_not_told_share_slots_only_with_steps_of_the_same_branches():
    def step(names):
        branches.prepare(names)  # and no `enter`
        return unnamed(branches, len(names))

    branches = Branches()
    assert step(["cond", "uncond", "skip"]) == [0, 1, 2]
    assert step(["cond", "skip"]) == [3, 4]
    assert step(["cond", "uncond", "skip"]) == [0, 1, 2]


def test_batches_without_a_name_are_told_apart_by_number():
    branches = Branches()
    assert step(branches, [None, None]) == [0, 1]
    assert step(branches, [None]) == [2]
