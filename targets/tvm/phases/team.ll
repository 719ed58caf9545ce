; The threads that share out the parallel loops of a program's kernels: a team.
;
; Kernels start a loop as TVM's runtime wants it: launch(body, closure) calls body(part, group, closure) for every part
; of 0 to group.parts - 1. Parts are not dealt out beforehand. Whoever runs takes the next one that is left, so that a
; thread which the system lets wait holds up none but those that it has begun; what a part computes does not depend on
; who computes it. Workers spin while a program runs, and sleep in between.
;
; A job is published as one number, "ticket": its count, its parts and the next part. To take a part is to add one to
; it. What a job consists of is read only by those who took a part of it, and is not replaced before all parts are done,
; so that nobody ever sees half of one job and half of another.
;
; The memory of a team is made by moec/runtime/team.py, in lines that no two threads write at once without need:
;
;   byte   0  i64  ticket: count << 32 | parts << 16 | next part; its upper half is a futex
;         64  i32  done: parts of the job that are done; a futex
;        128  ptr  body, 136 ptr closure, 144 ptr group
;        192  i32  sleepers: workers that sleep, or are about to
;        196  i32  waiting: whether the launching thread sleeps until all parts are done
;        256  i32  spins: how often to look before sleeping
;        260  i32  parts: into how many a loop is cut
;        264  i32  stop: workers leave
;        268  i32  clocked: whether the times below are taken
;        320  i64  nanoseconds that loops took the launching thread
;        384  i64  nanoseconds that threads were at parts, all together

%Group = type { ptr, i32 }

@team = internal global ptr null
@__TVMBackendParallelLaunch = weak global ptr null

declare i64 @syscall(i64, ...)
declare i32 @clock_gettime(i32, ptr)

; The program's kernels share their loops among this team from now on; none: each loop is run as one part.
define i32 @__tvm_ffi_moec_join_team(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  %at = getelementptr i8, ptr %arguments, i64 8
  %memory = load ptr, ptr %at
  store ptr %memory, ptr @team
  store ptr @launch, ptr @__TVMBackendParallelLaunch
  ret i32 0
}

; The life of a worker; comes back when the team is told to stop.
define i32 @__tvm_ffi_moec_work_in_team(ptr %self, ptr %arguments, i32 %count, ptr %result) {
entry:
  %at = getelementptr i8, ptr %arguments, i64 8
  %memory = load ptr, ptr %at
  %spins_at = getelementptr i8, ptr %memory, i64 256
  %stop_at = getelementptr i8, ptr %memory, i64 264
  %sleepers_at = getelementptr i8, ptr %memory, i64 192
  %count_at = getelementptr i8, ptr %memory, i64 4
  %spins = load i32, ptr %spins_at
  br label %again
again:
  %stop = load atomic i32, ptr %stop_at acquire, align 4
  %leaves = icmp ne i32 %stop, 0
  br i1 %leaves, label %end, label %help
help:
  call void @take_parts(ptr %memory)
  br label %spin
spin:
  %turn = phi i32 [ 0, %help ], [ %following, %pause ]
  %ticket = load atomic i64, ptr %memory acquire, align 8
  %open = call i1 @is_open(i64 %ticket)
  br i1 %open, label %again, label %look
look:
  %tired = icmp uge i32 %turn, %spins
  br i1 %tired, label %sleep, label %pause
pause:
  call void asm sideeffect "$pause", "~{memory}"()
  %following = add i32 %turn, 1
  br label %spin
sleep:
  %wide = lshr i64 %ticket, 32
  %seen = trunc i64 %wide to i32
  %before = atomicrmw add ptr %sleepers_at, i32 1 seq_cst
  %slept = call i64 (i64, ...) @syscall(i64 $futex, ptr %count_at, i32 128, i32 %seen, ptr null, ptr null, i32 0)
  %after = atomicrmw sub ptr %sleepers_at, i32 1 seq_cst
  br label %again
end:
  ret i32 0
}

define internal i1 @is_open(i64 %ticket) alwaysinline {
  %next = and i64 %ticket, 65535
  %shifted = lshr i64 %ticket, 16
  %parts = and i64 %shifted, 65535
  %open = icmp ult i64 %next, %parts
  ret i1 %open
}

; The time in nanoseconds; 0 where nobody wants to know.
define internal i64 @clock(ptr %memory) {
  %clocked_at = getelementptr i8, ptr %memory, i64 268
  %clocked = load i32, ptr %clocked_at
  %off = icmp eq i32 %clocked, 0
  br i1 %off, label %none, label %read
none:
  ret i64 0
read:
  %time = alloca { i64, i64 }
  %status = call i32 @clock_gettime(i32 1, ptr %time)
  %fraction_at = getelementptr i8, ptr %time, i64 8
  %seconds = load i64, ptr %time
  %fraction = load i64, ptr %fraction_at
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %fraction
  ret i64 %now
}

; Add the time since a reading of the clock to a sum.
define internal void @account(ptr %memory, i64 %since, i64 %offset) {
  %unknown = icmp eq i64 %since, 0
  br i1 %unknown, label %end, label %add
add:
  %sum_at = getelementptr i8, ptr %memory, i64 %offset
  %now = call i64 @clock(ptr %memory)
  %took = sub i64 %now, %since
  %ended = icmp sgt i64 %took, 0
  br i1 %ended, label %keep, label %end
keep:
  %sum = atomicrmw add ptr %sum_at, i64 %took monotonic
  br label %end
end:
  ret void
}

; Do parts of the job at hand until none is left.
define internal void @take_parts(ptr %memory) {
entry:
  %done_at = getelementptr i8, ptr %memory, i64 64
  %body_at = getelementptr i8, ptr %memory, i64 128
  %closure_at = getelementptr i8, ptr %memory, i64 136
  %group_at = getelementptr i8, ptr %memory, i64 144
  %waiting_at = getelementptr i8, ptr %memory, i64 196
  %began = call i64 @clock(ptr %memory)
  br label %look
look:
  %seen = load atomic i64, ptr %memory acquire, align 8
  %may_be = call i1 @is_open(i64 %seen)
  br i1 %may_be, label %take, label %end
take:
  %ticket = atomicrmw add ptr %memory, i64 1 acq_rel
  %open = call i1 @is_open(i64 %ticket)
  br i1 %open, label %do, label %end
do:
  %next = and i64 %ticket, 65535
  %part = trunc i64 %next to i32
  %body = load ptr, ptr %body_at
  %closure = load ptr, ptr %closure_at
  %group = load ptr, ptr %group_at
  %status = call i32 %body(i32 %part, ptr %group, ptr %closure)
  %before = atomicrmw add ptr %done_at, i32 1 seq_cst
  %done = add i32 %before, 1
  %shifted = lshr i64 %ticket, 16
  %narrow = trunc i64 %shifted to i32
  %parts = and i32 %narrow, 65535
  %last = icmp eq i32 %done, %parts
  br i1 %last, label %tell, label %look
tell:
  %waiting = load atomic i32, ptr %waiting_at seq_cst, align 4
  %waits = icmp ne i32 %waiting, 0
  br i1 %waits, label %wake, label %end
wake:
  %woken = call i64 (i64, ...) @syscall(i64 $futex, ptr %done_at, i32 129, i32 1, ptr null, ptr null, i32 0)
  br label %end
end:
  call void @account(ptr %memory, i64 %began, i64 384)
  ret void
}

; Called by kernels, in place of TVM's own: run all parts of a loop. Checks are made before loops, so no part fails.
define internal i32 @launch(ptr %body, ptr %closure, i32 %asked) {
entry:
  %group = alloca %Group
  %parts_of = getelementptr %Group, ptr %group, i32 0, i32 1
  store ptr null, ptr %group
  %memory = load ptr, ptr @team
  %alone = icmp eq ptr %memory, null
  br i1 %alone, label %single, label %publish
single:
  store i32 1, ptr %parts_of
  %status = call i32 %body(i32 0, ptr %group, ptr %closure)
  ret i32 %status
publish:
  %began = call i64 @clock(ptr %memory)
  %count_at = getelementptr i8, ptr %memory, i64 4
  %done_at = getelementptr i8, ptr %memory, i64 64
  %body_at = getelementptr i8, ptr %memory, i64 128
  %closure_at = getelementptr i8, ptr %memory, i64 136
  %group_at = getelementptr i8, ptr %memory, i64 144
  %sleepers_at = getelementptr i8, ptr %memory, i64 192
  %waiting_at = getelementptr i8, ptr %memory, i64 196
  %spins_at = getelementptr i8, ptr %memory, i64 256
  %parts_at = getelementptr i8, ptr %memory, i64 260
  %parts = load i32, ptr %parts_at
  %spins = load i32, ptr %spins_at
  store i32 %parts, ptr %parts_of
  store ptr %body, ptr %body_at
  store ptr %closure, ptr %closure_at
  store ptr %group, ptr %group_at
  store atomic i32 0, ptr %done_at release, align 4
  %old = load atomic i64, ptr %memory acquire, align 8
  %old_count = lshr i64 %old, 32
  %new_count = add i64 %old_count, 1
  %upper = shl i64 %new_count, 32
  %wide_parts = zext i32 %parts to i64
  %middle = shl i64 %wide_parts, 16
  %ticket = or i64 %upper, %middle
  store atomic i64 %ticket, ptr %memory seq_cst, align 8
  %sleepers = load atomic i32, ptr %sleepers_at seq_cst, align 4
  %asleep = icmp ne i32 %sleepers, 0
  br i1 %asleep, label %wake, label %help
wake:
  %woken = call i64 (i64, ...) @syscall(i64 $futex, ptr %count_at, i32 129, i32 2147483647, ptr null, ptr null, i32 0)
  br label %help
help:
  call void @take_parts(ptr %memory)
  br label %spin
spin:
  %turn = phi i32 [ 0, %help ], [ %following, %pause ]
  %done = load atomic i32, ptr %done_at acquire, align 4
  %all = icmp eq i32 %done, %parts
  br i1 %all, label %end, label %look
look:
  %tired = icmp uge i32 %turn, %spins
  br i1 %tired, label %wait, label %pause
pause:
  call void asm sideeffect "$pause", "~{memory}"()
  %following = add i32 %turn, 1
  br label %spin
wait:
  store atomic i32 1, ptr %waiting_at seq_cst, align 4
  br label %still
still:
  %so_far = load atomic i32, ptr %done_at seq_cst, align 4
  %ready = icmp eq i32 %so_far, %parts
  br i1 %ready, label %rested, label %sleep
sleep:
  %slept = call i64 (i64, ...) @syscall(i64 $futex, ptr %done_at, i32 128, i32 %so_far, ptr null, ptr null, i32 0)
  br label %still
rested:
  store atomic i32 0, ptr %waiting_at release, align 4
  br label %end
end:
  call void @account(ptr %memory, i64 %began, i64 320)
  ret i32 0
}
