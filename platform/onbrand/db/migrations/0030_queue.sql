-- depends: 0008_engine
-- Training jobs as a queue: who leads it, what a job needs, what it waits for, and what a brand may have in it.
set role onbrand_owner;

-- One row: the dispatcher that may act now. Another takes over when nobody renewed the lease in time.
create table app.dispatch_lease (
  one boolean primary key default true check (one),
  holder uuid not null,
  until timestamptz not null
);
alter table app.dispatch_lease enable row level security;
alter table app.dispatch_lease force row level security;
create policy own_code on app.dispatch_lease to onbrand_definer using (true) with check (true);

alter table app.lora_training_jobs
  add column num_workers integer not null default 1 check (num_workers between 1 and 64),
  add column waiting_for text check (waiting_for in ('brand', 'platform', 'resources', 'operator')),
  add column waiting_since timestamptz,
  add check ((waiting_for is null) = (waiting_since is null));
call app.keep_no_statistics('app.lora_training_jobs');
create index jobs_open_by_brand on app.lora_training_jobs (brand_id, created_at)
  where status in ('pending', 'training');

-- Null: the platform's numbers.
alter table app.brand_limits
  add column max_running_trainings integer check (max_running_trainings between 1 and 1000),
  add column max_open_trainings integer check (max_open_trainings between 1 and 100000);
call app.keep_no_statistics('app.brand_limits');

grant insert (num_workers) on app.lora_training_jobs to authenticated;
grant update (waiting_for, waiting_since) on app.lora_training_jobs to brand_system;

reset role;

grant select, insert, update on app.dispatch_lease to onbrand_definer;
grant select (num_workers, waiting_for, waiting_since) on app.lora_training_jobs to onbrand_definer;
grant select (brand_id, weight, max_running_trainings) on app.brand_limits to onbrand_definer;
drop function private.queue();
set role onbrand_definer;

-- The dispatcher learns ids, states and numbers, nothing else, and only from this function.
create function private.queue() returns table (kind text, brand_id text, job_id uuid, user_id uuid, status text,
  provider text, provider_job_id text, attempts integer, cancel_requested boolean, heartbeat_at timestamptz,
  created_at timestamptz, num_workers integer, waiting_for text, waiting_since timestamptz, weight double precision,
  max_running integer)
language sql stable security definer set search_path = '' as $$
  select 'training', j.brand_id, j.id, j.user_id, j.status, j.provider, j.provider_job_id, j.attempts,
    j.cancel_requested_at is not null, j.heartbeat_at, j.created_at, j.num_workers, j.waiting_for, j.waiting_since,
    coalesce(l.weight, 1), l.max_running_trainings
  from app.lora_training_jobs j left join app.brand_limits l on l.brand_id = j.brand_id
  where private.claims() is not null and j.status in ('pending', 'training')
  union all
  select 'generation', g.brand_id, g.id, g.user_id, g.status, null, null, 0,
    g.cancel_requested_at is not null, g.heartbeat_at, g.created_at, 0, null, null, 1, null
  from app.generations g where private.claims() is not null and g.status in ('pending', 'running')
  order by created_at
$$;

-- Take or keep the lead for so many seconds (0: give it back); false while another has it.
create function private.lead(holder uuid, seconds double precision) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_signed();
  insert into app.dispatch_lease as l (holder, until)
    values (lead.holder, clock_timestamp() + make_interval(secs => least(greatest(seconds, 0), 60)))
    on conflict (one) do update set holder = excluded.holder, until = excluded.until
      where l.holder = excluded.holder or l.until <= clock_timestamp();
  return found;
end $$;

reset role;
grant execute on function private.queue(), private.lead(uuid, double precision) to onbrand_dispatcher;
