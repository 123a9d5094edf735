from stepcache.run.slots import Slots


def step(slots, names, calls=1):
    """The slots of one step in which the guider has these branches, and `calls` U-Net calls each."""
    slots.prepare(names)
    taken = []
    for i, _ in enumerate(names):
        slots.enter()
        for j in range(calls):
            if i == j == 0:
                slots.begin_step()
            taken.append(slots.take(64))
    slots.leave()
    return taken


def unnamed(slots, calls, limit=64):
    slots.begin_step()
    return [slots.take(limit) for _ in range(calls)]


def test_without_a_guider_a_slot_is_the_number_of_the_call():
    slots = Slots()
    assert unnamed(slots, 3) == [0, 1, 2]
    assert unnamed(slots, 2) == [0, 1]


def test_calls_beyond_the_limit_share_it():
    slots = Slots()
    assert unnamed(slots, 5, limit=3) == [0, 1, 2, 3, 3]


def test_a_branch_keeps_its_slot_where_others_are_dropped_or_stand_in_another_order():
    slots = Slots()
    assert step(slots, ["cond", "uncond", "skip"]) == [0, 1, 2]
    assert step(slots, ["cond", "skip"]) == [0, 2]
    assert step(slots, ["uncond", "cond"]) == [1, 0]
    assert step(slots, ["cond", "other"]) == [0, 3]


def test_several_calls_of_a_branch_have_a_slot_each():
    slots = Slots()
    assert step(slots, ["cond", "uncond"], calls=2) == [0, 1, 2, 3]
    assert step(slots, ["uncond"], calls=2) == [2, 3]


def test_a_name_holds_for_its_step_alone():
    slots = Slots()
    assert step(slots, ["cond", "uncond"]) == [0, 1]
    # The next step is not the guider's: these calls may be anything.
    assert unnamed(slots, 2) == [2, 3]


def test_calls_whose_branch_is_not_told_share_slots_only_with_steps_of_the_same_branches():
    def step(names):
        slots.prepare(names)  # and no `enter`
        return unnamed(slots, len(names))

    slots = Slots()
    assert step(["cond", "uncond", "skip"]) == [0, 1, 2]
    assert step(["cond", "skip"]) == [3, 4]
    assert step(["cond", "uncond", "skip"]) == [0, 1, 2]


def test_batches_without_a_name_are_told_apart_by_number():
    slots = Slots()
    assert step(slots, [None, None]) == [0, 1]
    assert step(slots, [None]) == [2]
