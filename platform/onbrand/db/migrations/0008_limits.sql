-- depends: 0007_generation
-- Limits of brands and accounts: an operator's settings per brand, stored bytes, open uploads, waiting images, and the
-- number of an account's brands.
set role onbrand_owner;

-- A brand without a row has weight 1, the platform's limits, and no quota of slots. Null: the platform's limit.
create table app.brand_limits (
  brand_id text primary key references app.brands,
  weight double precision not null default 1 check (weight between 0.1 and 10),
  max_waiting_pictures integer check (max_waiting_pictures between 1 and 100000),
  slot_quota integer check (slot_quota between 1 and 10000),
  updated_at timestamptz not null default clock_timestamp(),
  max_running_trainings integer check (max_running_trainings between 1 and 1000),
  max_open_trainings integer check (max_open_trainings between 1 and 100000)
);
call app.enable_brand_isolation('app.brand_limits');
grant select on app.brand_limits to authenticated;
grant select, insert, update on app.brand_limits to onbrand_operator;
grant select on app.brand_limits to brand_system;
create policy member_select on app.brand_limits for select to authenticated using (true);
create policy operator_all on app.brand_limits to onbrand_operator using (true) with check (true);

-- Stored bytes of each brand and of each user over all brands. The trigger count_bytes maintains both.
create table app.brand_usage (
  brand_id text primary key references app.brands,
  bytes bigint not null
);
call app.enable_brand_isolation('app.brand_usage');
grant select on app.brand_usage to authenticated;
create policy member_select on app.brand_usage for select to authenticated using (true);

create table app.caller_usage (
  user_id uuid primary key,
  bytes bigint not null
);
alter table app.caller_usage enable row level security;
alter table app.caller_usage force row level security;
create policy function_owner on app.caller_usage to onbrand_definer using (true) with check (true);

reset role;

grant select (brand_id, weight, max_running_trainings) on app.brand_limits to onbrand_definer;
grant select, insert, update on app.brand_usage, app.caller_usage to onbrand_definer;
grant select (user_id) on app.uploads to onbrand_definer;
grant select (id, brand_id, user_id, status, num_images) on app.generations to onbrand_definer;
grant select (brand_id, generation_id) on app.generated_images to onbrand_definer;

set role onbrand_definer;

create function private.tg_count_bytes() returns trigger
language plpgsql security definer set search_path = '' as $$
declare o record; n bigint;
begin
  if tg_op = 'DELETE' then o := old; n := -old.bytes; else o := new; n := new.bytes; end if;
  insert into app.brand_usage as u (brand_id, bytes) values (o.brand_id, n)
    on conflict (brand_id) do update set bytes = u.bytes + excluded.bytes;
  insert into app.caller_usage as u (user_id, bytes) values (o.user_id, n)
    on conflict (user_id) do update set bytes = u.bytes + excluded.bytes;
  return null;
end $$;

-- Stored bytes of the brand, and of the caller over all brands.
create function private.stored_bytes(brand text) returns table (of_brand bigint, of_caller bigint)
language plpgsql stable security definer set search_path = '' as $$
begin
  if not coalesce(private.may_act_in(brand), false) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  return query select
    coalesce((select u.bytes from app.brand_usage u where u.brand_id = brand), 0),
    coalesce((select u.bytes from app.caller_usage u
      where u.user_id = coalesce(private.ctx('on_behalf_of'), private.ctx('sub'))::uuid), 0);
end $$;

-- The number of open uploads of the caller over all brands. Callers ask just before they create an upload; the lock
-- makes concurrent transactions of the same user wait.
create function private.num_open_uploads() returns integer
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('uploads-of', private.uid()::text));
  return (select count(*)::integer from app.uploads u
    where uuid_send(u.user_id) = uuid_send(private.uid()) and u.status = 'pending');
end $$;

-- Whether n more images of the brand may wait, if all brands of its account together may have max_waiting. The limit
-- counts per account, so that an account with many brands gets no more than one with few. The lock makes other
-- transactions for the same account wait until this transaction ends.
create function private.account_has_room(brand text, n integer, max_waiting integer) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
declare
  account uuid;
begin
  if not coalesce(private.may_act_in(brand), false) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  select o.user_id into account from app.brands o where o.id = brand;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('admission-of', account::text));
  return n <= max_waiting - (
    select coalesce(sum(g.num_images - (select count(*) from app.generated_images i
      where i.brand_id = g.brand_id and i.generation_id = g.id)), 0)
    from app.brands o join app.generations g on g.brand_id = o.id
    where uuid_send(o.user_id) = uuid_send(account) and g.status in ('pending', 'running'));
end $$;

-- Limit the number of an account's brands. The signed claims contain the limit; without it, the limit is 20. The lock
-- serializes concurrent creations.
create function private.tg_limit_brands() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
declare
  max_brands integer := coalesce((private.ctx('brands_per_account'))::integer, 20);
begin
  if current_setting('role', true) <> 'authenticated' or new.user_id is distinct from private.uid() then
    return new;  -- the owner, or refused by the policy: a caller must not learn how many brands another account has
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('brands', new.user_id::text));
  if (select count(*) from app.brands b where uuid_send(b.user_id) = uuid_send(new.user_id)) >= max_brands then
    raise exception 'an account has so many brands at most' using errcode = 'OB005';
  end if;
  return new;
end $$;

reset role;

grant execute on function private.stored_bytes(text) to authenticated, brand_system;
grant execute on function private.num_open_uploads(), private.account_has_room(text, integer, integer) to authenticated;
grant execute on function private.tg_count_bytes(), private.tg_limit_brands() to onbrand_owner;

set role onbrand_owner;

-- The trigger runs at the end of the transaction, or earlier when a service requests it (`set constraints
-- storage.count_bytes immediate`). From then on other transactions of the brand wait, so that two concurrent uploads
-- cannot exceed the limit together.
create constraint trigger count_bytes after insert or delete on storage.objects
  deferrable initially deferred for each row execute function private.tg_count_bytes();
create trigger limit_brands before insert on app.brands for each row execute function private.tg_limit_brands();

reset role;
