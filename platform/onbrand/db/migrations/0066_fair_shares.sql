-- depends: 0050_redraw
-- Whose share is whose: attempts to log in, brands of an account, and the account of a job in the queue.
set role onbrand_identity;

-- A bucket per client address, per account's address, and per pair of both, by a SHA-256 that names it: no address of a
-- person lies here. `due` is when the bucket would be full again (GCRA): once it is past, the row says nothing.
create table identity.attempts (
  key text primary key check (key ~ '^[0-9a-f]{64}$'),
  due timestamptz not null
);
create index attempts_by_due on identity.attempts (due);
alter table identity.attempts enable row level security;
alter table identity.attempts force row level security;
create policy own_code on identity.attempts to onbrand_identity using (true) with check (true);

-- Take one attempt from each of these buckets, each of `most` attempts in `seconds`, or from none: the answer is how
-- many seconds to wait, 0 when they were taken. What was refused counts for nothing, so waiting always helps.
-- All replicas ask here; the locks of the rows put concurrent attempts one after another.
create function private.take_attempt(keys text[], most integer[], seconds integer[]) returns double precision
language plpgsql volatile security definer set search_path = '' as $$
declare
  at timestamptz;
  until timestamptz;
  dues timestamptz[] := '{}';
  step interval;
  wait double precision := 0;
begin
  perform private.must_be_signed();
  if cardinality(keys) not between 1 and 4 or cardinality(most) <> cardinality(keys)
      or cardinality(seconds) <> cardinality(keys) or 1 > any (most) or 1 > any (seconds)
      or 86400 < any (seconds) then
    raise exception 'a bucket has a key, a number and a time' using errcode = '22023';
  end if;
  for n in 1 .. cardinality(keys) loop
    insert into identity.attempts as a (key, due) values (keys[n], clock_timestamp())
      on conflict (key) do update set due = a.due returning a.due into until;
    at := clock_timestamp();
    step := make_interval(secs => seconds[n]::double precision / most[n]);
    until := least(greatest(until, at), at + make_interval(secs => seconds[n]));  -- a bucket is full in its time
    wait := greatest(wait, extract(epoch from until - at - (most[n] - 1) * step));
    dues := dues || (until + step);
  end loop;
  if wait > 0 then return wait; end if;
  for n in 1 .. cardinality(keys) loop
    update identity.attempts a set due = dues[n] where a.key = keys[n];
  end loop;
  delete from identity.attempts a where a.key in (
    select b.key from identity.attempts b where b.due < clock_timestamp() order by b.due limit 8
    for update skip locked);
  return 0;
end $$;

-- Give one attempt back to each bucket: the password was right.
create function private.give_attempt_back(keys text[], most integer[], seconds integer[]) returns void
language sql volatile security definer set search_path = '' as $$
  update identity.attempts a set due = a.due - make_interval(secs => b.seconds::double precision / b.most)
  from (select t.key, t.most, t.seconds
    from unnest(give_attempt_back.keys, give_attempt_back.most, give_attempt_back.seconds) as t (key, most, seconds)) b
  where private.claims() is not null and a.key = b.key
$$;

reset role;
grant execute on function private.take_attempt(text[], integer[], integer[]),
  private.give_attempt_back(text[], integer[], integer[]) to anon;

grant select (id, user_id) on app.brands to onbrand_definer;
set role onbrand_owner;
-- For tg_few_brands, over all brands: not for searches by who may run SQL (see brand_users_by_user).
create index brands_by_user on app.brands (uuid_send(user_id));
alter index app.brands_by_user alter column 1 set statistics 0;
reset role;
drop function private.queue();
set role onbrand_definer;

-- An account has so many brands at most; the platform says how many in its own transaction, and 20 hold without a word.
-- The lock makes those who create at the same time count one after another.
create function private.tg_few_brands() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
declare
  most integer := coalesce(nullif(current_setting('onbrand.brands_per_account', true), '')::integer, 20);
begin
  if current_setting('role', true) <> 'authenticated' or new.user_id is distinct from private.uid() then
    return new;  -- the owner's, or refused by the policy: how many brands others have is nobody's to learn
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('brands', new.user_id::text));
  if (select count(*) from app.brands b where uuid_send(b.user_id) = uuid_send(new.user_id)) >= most then
    raise exception 'an account has so many brands at most' using errcode = 'OB005';
  end if;
  return new;
end $$;

-- As before, and whose the brand is: accounts take turns, and the brands of each.
create function private.queue() returns table (kind text, brand_id text, job_id uuid, user_id uuid, status text,
  provider text, provider_job_id text, attempts integer, cancel_requested boolean, heartbeat_at timestamptz,
  created_at timestamptz, num_workers integer, waiting_for text, waiting_since timestamptz, weight double precision,
  max_running integer, account_id uuid)
language sql stable security definer set search_path = '' as $$
  select 'training', j.brand_id, j.id, j.user_id, j.status, j.provider, j.provider_job_id, j.attempts,
    j.cancel_requested_at is not null, j.heartbeat_at, j.created_at, j.num_workers, j.waiting_for, j.waiting_since,
    coalesce(l.weight, 1), l.max_running_trainings, b.user_id
  from app.lora_training_jobs j join app.brands b on b.id = j.brand_id
    left join app.brand_limits l on l.brand_id = j.brand_id
  where private.claims() is not null and j.status in ('pending', 'training')
  union all
  select 'generation', g.brand_id, g.id, g.user_id, g.status, null, null, 0,
    g.cancel_requested_at is not null, g.heartbeat_at, g.created_at, 0, null, null, 1, null, b.user_id
  from app.generations g join app.brands b on b.id = g.brand_id
  where private.claims() is not null and g.status in ('pending', 'running')
  order by created_at
$$;

reset role;
grant execute on function private.queue() to onbrand_dispatcher;
grant execute on function private.tg_few_brands() to onbrand_owner;

set role onbrand_owner;
create trigger few_brands before insert on app.brands for each row execute function private.tg_few_brands();
reset role;
