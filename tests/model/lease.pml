/*
 * Link, room, lease, slot and drain between one decode and its prefills, for spin.
 *
 * Safety: no write lands in a page or slot that has another owner, and pages and slots are released only by
 * a proof (asserts at LAND and RELEASE); a prefill's source page is reused only after its writes (FREE_SRC);
 * peers that keep the rules never break the protocol (V rows). Liveness: ltl no_lease_waits_for_ever.
 *
 * The rows T(...) and V(...) are the code's table (libcommon/room/room.cc): tests/model/compare.py compares
 * them both ways. Everything else abstracts the transfer module:
 *  - A message has the epoch it was sent in. Sequence numbers are kept as what they tell the receiver: next,
 *    a repeat, or, once a message was lost or overtaken (gap_at_*), a gap, which the next heartbeat shows at
 *    the latest.
 *  - OpenRoom takes the pages along where the slot is free, or does not: both flows, whoever minted the room.
 *  - Register and its answer are one message that is repeated until it is read (asked); the test write is
 *    modelled, since it needs a slot.
 *  - A posted write is in the air until it lands, at any later time, also after its sender is dead. A plain
 *    write completes at the sender at any time after it was posted, as on TCP; record and scratch word land
 *    behind the room's other writes and complete afterwards.
 *  - Timers have no length: what a timer may do, it may do at any step.
 * Rooms, epochs and faults are bounded, so every run ends; spin extends its last state for ever. A step that
 * stays possible is therefore taken sooner or later (weak fairness), without spin's -f.
 *
 * Sizes: ROOMS, LINKS (each to a prefill of its own), PAGES of decode (there is one slot), WRITES of a room,
 * EPOCHS of a link, FAULTS in all.
 * NO_FENCE: a provider whose closed endpoint proves nothing; what is quarantined then may wait for ever.
 * Planted defects, each of which spin must find: TIMER_FREES, DRAINED_EARLY, FREE_BEFORE_CLOSE, SLOT_EARLY,
 * ERROR_IS_DRAINED, STALE_ANSWER (a restarted prefill answers for the one before), SOURCE_EARLY,
 * PAGES_UNTOLD (that they went with OpenRoom is forgotten), NEVER_FENCE (liveness). LANDING_ONLY leaves
 * them to the assert at LAND.
 */
#ifndef ROOMS
#define ROOMS 2
#endif
#ifndef LINKS
#define LINKS 1
#endif
#ifndef PAGES
#define PAGES 1
#endif
#ifndef WRITES
#define WRITES 1
#endif
#ifndef EPOCHS
#define EPOCHS 2
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#define CAP (4 * ROOMS - 2 + FAULTS / 2 * 4) /* enough: put() asserts it */

/* State and drain of a room. */
#define Idle 0
#define Bootstrapping_none 1
#define WaitingForInput_none 2
#define Transferring_none 3
#define Success_none 4
#define Failed_pending 5
#define Failed_proven 6
#define Failed_unproven 7
#define Over 8

#define ev_opened 1
#define ev_refused 2
#define ev_allocate 3
#define ev_sources 4
#define ev_writing 5
#define ev_commit 6
#define ev_bad_commit 7
#define ev_abort 8
#define ev_give_up 9
#define ev_fail 10
#define ev_fail_unproven 11
#define ev_drained 12
#define ev_unproven 13
#define ev_link_end 14
#define ev_fenced 15
#define ev_lost 16

/* Messages that have a receiver's event carry its number. */
#define OPENED ev_opened
#define REFUSED ev_refused
#define FAILED_DRAINED ev_fail
#define FAILED_UNPROVEN ev_fail_unproven
#define ABORT_DRAINED ev_drained
#define ABORT_UNPROVEN ev_unproven
#define NO_LINK 20 /* Error, or StaleIncarnation */
#define OPEN 21
#define ALLOCATE 22
#define ABORT 23
#define OPEN_WITH_PAGES 24

#define NEXT 0
#define REPEAT 1 /* a copy, or overtaken: its number is not the next one */

/* Decode: rooms. */
byte ph_receiver[ROOMS];
byte on[ROOMS];    /* link */
byte at[ROOMS];    /* its epoch then */
bit attached[ROOMS];
byte page[ROOMS];  /* leased, from 1; 0 none */
bit named[ROOMS];  /* RoomOpened, or a record that overtook it, told the id */
bit quarantined[ROOMS];
bit event_of_record[ROOMS]; /* in decode's completion queue */
byte waiting;      /* quarantined leases */
/* Decode: pages, the slot, links. */
byte owner[PAGES]; /* room from 1; 0 free */
byte slot;         /* room from 1; TEST and up: a link's test write; 0 free */
#define TEST (ROOMS + 1)
#define DOWN 0
#define REGISTERING 1
#define READY 2
#define CLOSING 3
byte state[LINKS];
byte epoch[LINKS];
bit ending[LINKS];
bit gap_at_receiver[LINKS];

/* Prefill: rooms. */
byte ph_sender[ROOMS];
bit met[ROOMS];
bit asked_abort[ROOMS];
byte engine[ROOMS]; /* 0 has no job, 1 computes, 2 is to stop */
bit source[ROOMS];
byte todo[ROOMS];   /* writes whose pages are not computed */
byte queued[ROOMS];
byte open[ROOMS];   /* posted, not completed */
bit posted[ROOMS];  /* any */
#define NONE 0
#define RECORD_QUEUED 1
#define RECORD_POSTED 2
#define SCRATCH_QUEUED 3
#define SCRATCH_POSTED 4
#define RECORD_DONE 5
#define SCRATCH_DONE 6
byte last[ROOMS];   /* record or scratch word */
bit acked[ROOMS];   /* its completion is there */
/* Prefill: links. */
byte sends[LINKS];  /* epoch; 0 none */
byte asked[LINKS];  /* Register for this epoch waits to be read */
bit dead[LINKS];
bit gap_at_sender[LINKS];
byte source_owner[LINKS];

/* The network. */
chan to_s[LINKS] = [CAP] of {byte, byte, byte, bit};
chan to_r[LINKS] = [CAP] of {byte, byte, byte, bit};
byte air[ROOMS];     /* page writes that may land */
byte target[ROOMS];  /* page they were posted for, from 1 */
byte air_last[ROOMS]; /* 1 record, 2 scratch */
bit air_test[LINKS];
byte faults = FAULTS;

#define FAULT(condition) faults > 0 && (condition) -> faults--

/* Pairs are alike: it is enough that the first one fails. */
#define faulty(l) (l == 0)

inline put(c, kind, room, e) {
  assert(len(c) < CAP);
  c!kind, room, e, NEXT
}

/* ---- actions of the table ---- */
#define lease_sources skip;
#define start_compute engine[r] = 1;
#define cancel_compute if :: engine[r] == 1 -> engine[r] = 2 :: else fi;
#define purge queued[r] = 0; if :: last[r] == RECORD_QUEUED -> last[r] = NONE :: else fi;
#ifdef DRAINED_EARLY
#define begin_drain put(to_r[on[r]], (asked_abort[r] -> ABORT_DRAINED : FAILED_DRAINED), r, at[r]);
#else
#define begin_drain skip;
#endif
/* finish is a step of its own, once the engine has let go. */
#define finish skip;
#define send_done skip;
#define send_drained put(to_r[on[r]], (asked_abort[r] -> ABORT_DRAINED : (met[r] -> FAILED_DRAINED : REFUSED)), r, at[r]);
/* A room that outlives its link has nobody to tell. */
#define send_unproven                                                                                  \
  if                                                                                                   \
  :: sends[on[r]] == at[r] ->                                                                          \
     put(to_r[on[r]], (asked_abort[r] -> ABORT_UNPROVEN : (met[r] -> FAILED_UNPROVEN : REFUSED)), r, at[r]); \
  :: else                                                                                              \
  fi;

#define lease_slot skip;
#define send_allocate target[r] = page[r]; put(to_s[on[r]], ALLOCATE, r, at[r]);
#define send_abort if :: named[r] -> put(to_s[on[r]], ABORT, r, at[r]) :: else fi;
#ifdef SLOT_EARLY
#define quarantine quarantined[r] = 1; waiting++; if :: slot == r + 1 -> slot = 0 :: else fi;
#else
#define quarantine quarantined[r] = 1; waiting++;
#endif
#define release RELEASE(r);
#define free_slot slot = 0;
#define report_committed skip;
#define report_failed skip;
#define end_link ending[on[r]] = 1;

#ifdef LANDING_ONLY
#define PROOF(r) true
#else
#define PROOF(r) (air[r] == 0 && air_last[r] == 0)
#endif
#define RELEASE(r)                                                                                   \
  assert(PROOF(r));                                                                                  \
  if :: quarantined[r] -> quarantined[r] = 0; waiting-- :: else fi;                                  \
  if :: page[r] > 0 -> owner[page[r] - 1] = 0; page[r] = 0 :: else fi;                               \
  if :: slot == r + 1 -> slot = 0 :: else fi

/* ---- the table ---- */
#define T(role, state1, drain1, event, state2, drain2, actions) \
  :: ph_##role[r] == state1##_##drain1 && e == ev_##event -> ph_##role[r] = state2##_##drain2; actions
#define V(role, state1, drain1, event) \
  :: ph_##role[r] == state1##_##drain1 && e == ev_##event -> assert(false)

inline sender(r, e) {
  if
  T(sender, Bootstrapping, none, allocate, WaitingForInput, none, lease_sources)
  T(sender, Bootstrapping, none, abort, Failed, proven, send_drained finish)
  T(sender, Bootstrapping, none, fail, Failed, proven, send_drained finish)
  T(sender, Bootstrapping, none, link_end, Failed, unproven, send_unproven finish)
  T(sender, WaitingForInput, none, sources, WaitingForInput, none, start_compute)
  T(sender, WaitingForInput, none, writing, Transferring, none, skip)
  T(sender, WaitingForInput, none, abort, Failed, proven, cancel_compute send_drained finish)
  T(sender, WaitingForInput, none, fail, Failed, proven, cancel_compute send_drained finish)
  T(sender, WaitingForInput, none, link_end, Failed, unproven, cancel_compute send_unproven finish)
  T(sender, Transferring, none, commit, Success, none, send_done finish)
  T(sender, Transferring, none, abort, Failed, pending, purge cancel_compute begin_drain)
  T(sender, Transferring, none, fail, Failed, pending, purge cancel_compute begin_drain)
  T(sender, Transferring, none, link_end, Failed, unproven, cancel_compute send_unproven finish)
  T(sender, Success, none, abort, Success, none, send_drained)
  T(sender, Failed, pending, commit, Failed, proven, send_drained finish)
  T(sender, Failed, pending, drained, Failed, proven, send_drained finish)
  T(sender, Failed, pending, link_end, Failed, unproven, send_unproven finish)
  T(sender, Failed, proven, abort, Failed, proven, send_drained)
  T(sender, Failed, unproven, abort, Failed, unproven, send_unproven)
  V(sender, WaitingForInput, none, allocate)
  V(sender, Transferring, none, allocate)
  V(sender, Success, none, allocate)
  :: else
  fi
}

inline receiver(r, e) {
  if
  T(receiver, Bootstrapping, none, opened, WaitingForInput, none, lease_slot)
  T(receiver, Bootstrapping, none, allocate, Transferring, none, skip)
  T(receiver, Bootstrapping, none, refused, Failed, proven, release report_failed)
  T(receiver, Bootstrapping, none, abort, Failed, pending, release)
  T(receiver, Bootstrapping, none, give_up, Failed, pending, release report_failed)
  T(receiver, Bootstrapping, none, fail, Failed, proven, release report_failed)
  T(receiver, Bootstrapping, none, fail_unproven, Failed, proven, release report_failed end_link)
  T(receiver, Bootstrapping, none, fenced, Failed, proven, release report_failed)
  T(receiver, Bootstrapping, none, lost, Failed, proven, release report_failed)
  T(receiver, WaitingForInput, none, allocate, Transferring, none, send_allocate)
  T(receiver, WaitingForInput, none, abort, Failed, pending, release send_abort)
  T(receiver, WaitingForInput, none, give_up, Failed, pending, release send_abort report_failed)
  T(receiver, WaitingForInput, none, fail, Failed, proven, release report_failed)
  T(receiver, WaitingForInput, none, fail_unproven, Failed, proven, release report_failed end_link)
  T(receiver, WaitingForInput, none, fenced, Failed, proven, release report_failed)
  T(receiver, WaitingForInput, none, lost, Failed, proven, release report_failed)
  T(receiver, Transferring, none, opened, Transferring, none, skip)
  T(receiver, Transferring, none, refused, Failed, proven, release report_failed)
  T(receiver, Transferring, none, commit, Success, none, free_slot report_committed)
  T(receiver, Transferring, none, bad_commit, Failed, unproven, quarantine report_failed end_link)
  T(receiver, Transferring, none, abort, Failed, pending, quarantine send_abort)
  T(receiver, Transferring, none, give_up, Failed, pending, quarantine send_abort report_failed)
  T(receiver, Transferring, none, fail, Failed, proven, release report_failed)
  T(receiver, Transferring, none, fail_unproven, Failed, unproven, quarantine report_failed end_link)
  T(receiver, Transferring, none, fenced, Failed, proven, release report_failed)
  T(receiver, Transferring, none, lost, Failed, unproven, quarantine report_failed)
  T(receiver, Failed, pending, opened, Failed, pending, send_abort)
  T(receiver, Failed, pending, refused, Failed, proven, release)
  T(receiver, Failed, pending, commit, Failed, proven, release)
  T(receiver, Failed, pending, bad_commit, Failed, unproven, end_link)
  T(receiver, Failed, pending, fail, Failed, proven, release)
  T(receiver, Failed, pending, fail_unproven, Failed, unproven, end_link)
  T(receiver, Failed, pending, drained, Failed, proven, release)
  T(receiver, Failed, pending, unproven, Failed, unproven, end_link)
  T(receiver, Failed, pending, fenced, Failed, proven, release)
  T(receiver, Failed, pending, lost, Failed, unproven, skip)
  T(receiver, Failed, unproven, fenced, Failed, proven, release)
  V(receiver, WaitingForInput, none, opened)
  V(receiver, WaitingForInput, none, refused)
  V(receiver, Bootstrapping, none, drained)
  V(receiver, WaitingForInput, none, drained)
  V(receiver, Transferring, none, drained)
  V(receiver, Bootstrapping, none, unproven)
  V(receiver, WaitingForInput, none, unproven)
  V(receiver, Transferring, none, unproven)
  :: else
  fi;
  /* Over: forgotten. Without pages and slot nothing is left to prove. */
  if
  :: ph_receiver[r] == Failed_proven || (ph_receiver[r] == Failed_unproven && page[r] == 0 && slot != r + 1) ->
     ph_receiver[r] = Over; attached[r] = 0; named[r] = 0
  :: else
  fi
}

/* ---- decode ---- */
#define linked(l) (state[l] == READY && !ending[l])
#ifdef NO_FENCE
#define reaches(r) (target[r] > 0)
#else
#define reaches(r) (state[on[r]] != DOWN && epoch[on[r]] == at[r])
#endif
#define drains1(r, l) (attached[r] && on[r] == l && ph_receiver[r] == Failed_pending)
#define drains(l) (drains1(0, l) || drains1(1, l) || drains1(ROOMS - 1, l))

inline close_endpoint(l) {
  for (i : 0 .. ROOMS - 1) {
    if
    :: on[i] == l && at[i] == epoch[l] ->
       event_of_record[i] = 0;
#ifndef NO_FENCE
       air[i] = 0;
       air_last[i] = 0;
       target[i] = 0
#endif
    :: else
    fi
  }
#ifndef NO_FENCE
  air_test[l] = 0;
  if :: slot == TEST + l -> slot = 0 :: else fi
#endif
}

#ifdef NO_FENCE
#define ev_of_end ev_lost
#else
#define ev_of_end ev_fenced
#endif

/* One step is one turn of the atomic block: what happened, then the table for the rooms that it concerns. */
proctype DecodeLink(byte l) {
  byte i, k, r, n, e;
  bit seq;
end:
  do
  :: atomic {
    if
    /* Register: an endpoint, a key and a slot for the test write. */
    :: state[l] == DOWN && epoch[l] < EPOCHS && slot == 0 && !dead[l] ->
       slot = TEST + l; epoch[l]++; asked[l] = epoch[l]; state[l] = REGISTERING
    /* A message. */
    :: to_r[l]?k, r, e, seq ->
       if
       :: linked(l) && e == epoch[l] && (k == NO_LINK || (seq == NEXT && gap_at_receiver[l])) ->
          ending[l] = 1; k = 0
       :: linked(l) && e == epoch[l] && k != NO_LINK && seq == NEXT && !gap_at_receiver[l] ->
          if
          :: attached[r] ->
             n = r + 1;
             if
             :: k == OPENED -> assert(!named[r] || ph_receiver[r] == Success_none); named[r] = 1
             :: k == REFUSED -> assert(!named[r])
             :: else
             fi
          :: !attached[r] ->
             if :: k == OPENED -> put(to_s[l], ABORT, r, e) :: else fi;
             k = 0
          fi
       :: else -> k = 0
       fi
    /* A heartbeat shows the gap. */
    :: linked(l) && gap_at_receiver[l] -> ending[l] = 1
#ifndef NEVER_FENCE
    /* Silence: the prefill is dead, or keeps no link in this epoch any more. */
    :: state[l] != DOWN && !ending[l] && (dead[l] || (sends[l] != epoch[l] && asked[l] != epoch[l])) ->
       ending[l] = 1
    /* An abort was not answered, or a reservation starves. */
    :: linked(l) && drains(l) -> ending[l] = 1
#endif
    /* A partition, an error of the endpoint, the test write lost. */
    :: FAULT(faulty(l) && state[l] != DOWN && !ending[l]); ending[l] = 1
    /* The end: endpoint and key are closed first. */
#ifdef FREE_BEFORE_CLOSE
    :: ending[l] && state[l] != CLOSING -> k = ev_of_end; n = ROOMS; state[l] = CLOSING
    :: state[l] == CLOSING -> close_endpoint(l); state[l] = DOWN; ending[l] = 0
#else
    :: ending[l] ->
       close_endpoint(l);
       k = ev_of_end; n = ROOMS; state[l] = DOWN; ending[l] = 0
#endif
    fi;
    if
    :: k > 0 ->
       for (i : r .. n - 1) {
         if
         :: attached[i] && on[i] == l ->
            receiver(i, k);
            if :: k == ev_of_end -> attached[i] = 0; gap_at_receiver[l] = 0 :: else fi
         :: else
         fi
       }
    :: else
    fi;
    if :: state[l] == DOWN -> gap_at_receiver[l] = 0 :: else fi;
    i = 0; k = 0; r = 0; n = 0; e = 0; seq = 0
  }
  od
}

#define free_page (owner[0] == 0 || owner[PAGES - 1] == 0)
#define unused(r) (ph_receiver[r] == Idle && (r == 0 || ph_receiver[(r > 0 -> r - 1 : 0)] != Idle))
#define lives(r) (ph_receiver[r] >= Bootstrapping_none && ph_receiver[r] <= Transferring_none)

inline open_on(l) {
  if :: owner[0] > 0 -> p = 1 :: else fi;
  owner[p] = r + 1; page[r] = p + 1;
  on[r] = l; at[r] = epoch[l]; attached[r] = 1; ph_receiver[r] = Bootstrapping_none;
  if
  :: slot == 0 ->
     slot = r + 1; target[r] = page[r]; put(to_s[l], OPEN_WITH_PAGES, r, at[r]);
#ifndef PAGES_UNTOLD
     e = ev_allocate
#endif
  :: put(to_s[l], OPEN, r, at[r])
  fi
}

proctype DecodeRoom(byte r) {
  byte p, e;
end:
  do
  :: atomic {
    if
    /* Pages are leased before OpenRoom; each attempt is a room of its own. Rooms are opened in turn. */
#if LINKS > 1
    /* The retry goes to the second pair. */
    :: unused(r) && linked(r > 0) && free_page -> open_on(r > 0)
#else
    :: unused(r) && linked(0) && free_page -> open_on(0)
#endif
    :: ph_receiver[r] == WaitingForInput_none && slot == 0 && linked(on[r]) ->
       slot = r + 1; e = ev_allocate
    :: attached[r] && lives(r) && linked(on[r]) -> e = ev_abort
    :: attached[r] && lives(r) && linked(on[r]) -> e = ev_give_up
    /* The event of the record; stale once the slot's lease is over. */
    :: event_of_record[r] && (!attached[r] || !ending[on[r]]) ->
       event_of_record[r] = 0;
       if :: attached[r] && slot == r + 1 -> named[r] = 1; e = ev_commit :: else fi
    :: FAULT(event_of_record[r] && attached[r] && slot == r + 1 && !ending[on[r]]);
       event_of_record[r] = 0; e = ev_bad_commit
    /* The sequence is done. */
    :: ph_receiver[r] == Success_none ->
       RELEASE(r); ph_receiver[r] = Over; attached[r] = 0; named[r] = 0
#ifdef TIMER_FREES
    :: quarantined[r] ->
       quarantined[r] = 0; waiting--; owner[page[r] - 1] = 0; page[r] = 0
#endif
    fi;
    if :: e > 0 -> receiver(r, e) :: else fi;
    p = 0; e = 0
  }
  od
}

/* ---- prefill ---- */
inline forget(r) {
  ph_sender[r] = Idle; met[r] = 0; asked_abort[r] = 0; engine[r] = 0; source[r] = 0;
  todo[r] = 0; queued[r] = 0; open[r] = 0; posted[r] = 0; last[r] = NONE; acked[r] = 0
}

proctype PrefillLink(byte l) {
  byte i, k, r, n, e;
  bit seq;
end:
  do
  :: atomic {
    if
    /* Register: the old link ends first. */
    :: asked[l] > 0 && !dead[l] -> k = ev_link_end
    :: !dead[l] && len(to_s[l]) > 0 ->
       to_s[l]?k, r, e, seq;
       if
       :: sends[l] == 0 ->
#ifdef STALE_ANSWER
          if :: k == ABORT -> put(to_r[l], ABORT_DRAINED, r, e) :: else -> put(to_r[l], NO_LINK, r, e) fi;
#else
          put(to_r[l], NO_LINK, r, e);
#endif
          k = 0
       :: sends[l] > 0 && e == sends[l] && seq == NEXT && gap_at_sender[l] -> k = ev_link_end
       :: sends[l] > 0 && e == sends[l] && seq == NEXT && !gap_at_sender[l] ->
          n = r + 1;
          if
          :: k == OPEN -> ph_sender[r] = Bootstrapping_none; todo[r] = WRITES; k = 0
          :: k == OPEN_WITH_PAGES ->
             ph_sender[r] = Bootstrapping_none; todo[r] = WRITES;
             /* May wait at prefill for others to go with, but for no message behind it: as if
                the channel were slow. After a commit it is not sent; decode would drop it. */
             met[r] = 1; put(to_r[l], OPENED, r, e); k = ev_allocate
          :: k == OPEN || k == OPEN_WITH_PAGES -> put(to_r[l], REFUSED, r, e); k = 0
          :: k == ALLOCATE ->
             assert(met[r] || ph_sender[r] != Bootstrapping_none);
             k = ev_allocate
          :: k == ABORT && ph_sender[r] != Idle -> asked_abort[r] = 1; k = ev_abort
          :: k == ABORT && ph_sender[r] == Idle -> put(to_r[l], ABORT_DRAINED, r, e); k = 0
          fi
       :: else -> k = 0
       fi
    /* A heartbeat shows the gap; decode keeps no link in this epoch any more. */
    :: sends[l] > 0 && (gap_at_sender[l] || state[l] == DOWN || epoch[l] != sends[l]) -> k = ev_link_end
    /* A write ended in an error, or a partition. What was posted may land all the same. */
    :: FAULT(faulty(l) && sends[l] > 0); k = ev_link_end
    /* Killed, and started again or not. */
    :: FAULT(faulty(l) && !dead[l]);
       for (i : 0 .. ROOMS - 1) {
         if :: ph_sender[i] != Idle && on[i] == l -> forget(i) :: else fi
       }
       sends[l] = 0; asked[l] = 0; gap_at_sender[l] = 0; source_owner[l] = 0;
       if :: dead[l] = 1 :: skip fi
    fi;
    /* The endpoint closes first: nothing is posted any more. */
    if :: k == ev_link_end -> r = 0; n = ROOMS :: else fi;
    if
    :: k > 0 ->
       for (i : r .. n - 1) {
         if
         :: ph_sender[i] != Idle && on[i] == l && at[i] == sends[l] ->
            if
            :: k == ev_link_end -> queued[i] = 0; open[i] = 0; acked[i] = 0; last[i] = NONE
            :: else
            fi;
            sender(i, k)
         :: else
         fi
       }
    :: else
    fi;
    if
    :: k == ev_link_end ->
       sends[l] = 0; gap_at_sender[l] = 0;
       if
       :: asked[l] > 0 ->
          sends[l] = asked[l]; asked[l] = 0;
          if :: state[l] == REGISTERING && epoch[l] == sends[l] -> air_test[l] = 1 :: else fi
       :: else
       fi
    :: else
    fi;
    i = 0; k = 0; r = 0; n = 0; e = 0; seq = 0
  }
  od
}

#define live(r) (ph_sender[r] != Idle && sends[on[r]] == at[r])
#define last_posted(r) (last[r] == RECORD_POSTED || last[r] == SCRATCH_POSTED)
#ifdef SOURCE_EARLY
#define ended(r) (ph_sender[r] >= Success_none)
#else
#define ended(r) (ph_sender[r] >= Success_none && ph_sender[r] != Failed_pending)
#endif

proctype PrefillRoom(byte r) {
  byte e;
end:
  do
  :: atomic {
    if
    /* Standalone: the other half came. Decode-first: at once. */
    :: live(r) && ph_sender[r] == Bootstrapping_none && !met[r] ->
       met[r] = 1; put(to_r[on[r]], OPENED, r, at[r])
    /* The engine, a deadline, the other half. */
    :: live(r) && ph_sender[r] >= Bootstrapping_none && ph_sender[r] <= Transferring_none -> e = ev_fail
    :: live(r) && ph_sender[r] == WaitingForInput_none && !source[r] && source_owner[on[r]] == 0 ->
       source[r] = 1; source_owner[on[r]] = r + 1; e = ev_sources
    :: live(r) && engine[r] == 1 && todo[r] > 0 -> todo[r]--; queued[r]++; e = ev_writing
    :: queued[r] > 0 ->
       queued[r]--; open[r]++; posted[r] = 1;
       if :: reaches(r) -> air[r]++ :: else fi
    :: open[r] > 0 -> open[r]--
    /* The record follows the last page. */
    :: live(r) && ph_sender[r] == Transferring_none && engine[r] == 1 && todo[r] == 0 && queued[r] == 0 ->
       engine[r] = 0; last[r] = RECORD_QUEUED
    :: last[r] == RECORD_QUEUED ->
       last[r] = RECORD_POSTED;
       if :: reaches(r) -> air_last[r] = 1 :: else fi
    /* What was posted completes; then the scratch word, unless nothing was posted. */
    :: live(r) && ph_sender[r] == Failed_pending && open[r] == 0 && last[r] == NONE ->
       if :: posted[r] -> last[r] = SCRATCH_QUEUED :: else -> e = ev_drained fi
    :: last[r] == SCRATCH_QUEUED ->
       last[r] = SCRATCH_POSTED;
       if :: reaches(r) -> air_last[r] = 2 :: else fi
    :: acked[r] -> acked[r] = 0; last[r] = (last[r] == RECORD_POSTED -> RECORD_DONE : SCRATCH_DONE)
    :: live(r) && open[r] == 0 && last[r] == RECORD_DONE &&
       (ph_sender[r] == Transferring_none || ph_sender[r] == Failed_pending) -> e = ev_commit
    :: live(r) && open[r] == 0 && last[r] == SCRATCH_DONE && ph_sender[r] == Failed_pending -> e = ev_drained
#ifdef ERROR_IS_DRAINED
    :: FAULT(live(r) && (open[r] > 0 || last_posted(r)));
       open[r] = 0;
       if :: last[r] == SCRATCH_POSTED -> last[r] = SCRATCH_DONE :: else fi
#endif
    :: engine[r] == 2 -> engine[r] = 0
    :: ended(r) && engine[r] == 0 ->
       assert(!live(r) || (open[r] == 0 && !last_posted(r))); /* FREE_SRC */
       if :: source[r] -> source_owner[on[r]] = 0 :: else fi;
       forget(r)
    fi;
    if :: e > 0 -> sender(r, e) :: else fi;
    e = 0
  }
  od
}

/* ---- the network, and the death of decode ---- */
proctype Network() {
  byte i, k, r, e;
  bit seq;
end:
  do
#define LANDS(r)                                                                                      \
  :: atomic { air[r] > 0 ->                                                                           \
       assert(owner[target[r] - 1] == r + 1 && ph_receiver[r] != Success_none); /* LAND */            \
       air[r]-- }                                                                                     \
  :: atomic { air[r] == 0 && air_last[r] > 0 ->                                                       \
       assert(slot == r + 1); /* LAND */                                                              \
       if                                                                                             \
       :: air_last[r] == 1 && state[on[r]] != DOWN && epoch[on[r]] == at[r] -> event_of_record[r] = 1 \
       :: else                                                                                        \
       fi;                                                                                            \
       air_last[r] = 0;                                                                               \
       if :: live(r) && last_posted(r) -> acked[r] = 1 :: else fi }
  LANDS(0)
  LANDS(1)
#if ROOMS > 2
  LANDS(2)
#endif
  /* The test write; then a message may be lost, repeated or overtaken by all others. */
#define TRAVELS(l)                                                                                    \
  :: atomic { air_test[l] ->                                                                          \
       assert(slot == TEST + l); /* LAND */                                                           \
       air_test[l] = 0;                                                                               \
       if :: state[l] == REGISTERING -> state[l] = READY; slot = 0 :: else fi }                       \
  :: atomic { FAULT(faulty(l) && nempty(to_r[l])); to_r[l]?k, r, e, seq;                                         \
       if :: seq == NEXT && k != NO_LINK && e == epoch[l] && state[l] == READY -> gap_at_receiver[l] = 1 :: else fi;\
       if :: skip :: nempty(to_r[l]) -> to_r[l]!k, r, e, REPEAT fi;                                   \
       k = 0; r = 0; e = 0; seq = 0 }                                                                 \
  :: atomic { FAULT(faulty(l) && nempty(to_r[l]) && len(to_r[l]) < CAP);                                   \
       to_r[l]?<k, r, e, seq>; to_r[l]!k, r, e, REPEAT;                                               \
       k = 0; r = 0; e = 0; seq = 0 }                                                                 \
  :: atomic { FAULT(faulty(l) && nempty(to_s[l])); to_s[l]?k, r, e, seq;                                         \
       if :: seq == NEXT && k != NO_LINK && e == sends[l] -> gap_at_sender[l] = 1 :: else fi;         \
       if :: skip :: nempty(to_s[l]) -> to_s[l]!k, r, e, REPEAT fi;                                   \
       k = 0; r = 0; e = 0; seq = 0 }                                                                 \
  :: atomic { FAULT(faulty(l) && nempty(to_s[l]) && len(to_s[l]) < CAP);                                   \
       to_s[l]?<k, r, e, seq>; to_s[l]!k, r, e, REPEAT;                                               \
       k = 0; r = 0; e = 0; seq = 0 }
  TRAVELS(0)
#if LINKS > 1
  TRAVELS(1)
#endif
  /* Decode dies and is started again: other memory, other endpoints, no room of before. */
  :: atomic { FAULT(true);
       for (i : 0 .. ROOMS - 1) {
         air[i] = 0; air_last[i] = 0; event_of_record[i] = 0; page[i] = 0; target[i] = 0;
         quarantined[i] = 0; attached[i] = 0; named[i] = 0;
         if :: ph_receiver[i] != Idle -> ph_receiver[i] = Over :: else fi
       }
       for (i : 0 .. PAGES - 1) { owner[i] = 0 }
       for (i : 0 .. LINKS - 1) {
         state[i] = DOWN; ending[i] = 0; gap_at_receiver[i] = 0; air_test[i] = 0
       }
       slot = 0; waiting = 0; i = 0 }
  od
}

init {
  byte i;
  atomic {
    for (i : 0 .. LINKS - 1) { run DecodeLink(i); run PrefillLink(i) }
    for (i : 0 .. ROOMS - 1) { run DecodeRoom(i); run PrefillRoom(i) }
    run Network();
    i = 0
  }
}

#ifdef LIVENESS
ltl no_lease_waits_for_ever { [] (waiting > 0 -> <> (waiting == 0)) }
#endif
