-- depends: 0050_redraw
-- Stores of any region.
set role onbrand_owner;

alter table app.brands drop constraint brands_home_region_check,
  add constraint brands_home_region_check check (home_region ~ '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$');

reset role;

-- What each brand and each caller has stored, counted by a trigger, so that nobody who stores can forget it. It counts when
-- the transaction ends, or when a service asks for it just before (`set constraints storage.count_bytes immediate`): from
-- then on others of the brand wait, and two uploads never pass the limit together.
set role onbrand_owner;
create table app.brand_usage (
  brand_id text primary key references app.brands,
  bytes bigint not null
);
call app.build_wall('app.brand_usage');
grant select on app.brand_usage to authenticated;
create policy member_select on app.brand_usage for select to authenticated using (true);

create table app.caller_usage (
  user_id uuid primary key,
  bytes bigint not null
);
alter table app.caller_usage enable row level security;
alter table app.caller_usage force row level security;
create policy own_code on app.caller_usage to onbrand_definer using (true) with check (true);

alter table storage.objects no force row level security;
alter table app.brand_usage no force row level security;
alter table app.caller_usage no force row level security;
insert into app.brand_usage select o.brand_id, sum(o.bytes) from storage.objects o group by o.brand_id;
insert into app.caller_usage select o.user_id, sum(o.bytes) from storage.objects o group by o.user_id;
alter table storage.objects force row level security;
alter table app.brand_usage force row level security;
alter table app.caller_usage force row level security;

create index uploads_open_by_user on app.uploads (uuid_send(user_id)) where status = 'pending';
alter index app.uploads_open_by_user alter column 1 set statistics 0;
create index uploads_kept_by_brand on app.uploads (brand_id) where swept_at is null;
reset role;

grant select, insert, update on app.brand_usage, app.caller_usage to onbrand_definer;
grant select (user_id) on app.uploads to onbrand_definer;
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

-- Bytes of a brand that the caller acts in, and of the caller in all brands together.
create function private.stored_bytes(b text) returns table (of_brand bigint, of_caller bigint)
language plpgsql stable security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  return query select
    coalesce((select u.bytes from app.brand_usage u where u.brand_id = b), 0),
    coalesce((select u.bytes from app.caller_usage u
      where u.user_id = coalesce(private.ctx('on_behalf_of'), private.ctx('sub'))::uuid), 0);
end $$;

-- How many uploads the caller has open, in all brands together: a number. Who asks begins one; others of the caller's wait.
create function private.num_open_uploads() returns integer
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('uploads-of', private.uid()::text));
  return (select count(*)::integer from app.uploads u where uuid_send(u.user_id) = uuid_send(private.uid()) and u.status = 'pending');
end $$;
grant execute on function private.tg_count_bytes() to onbrand_owner;
grant execute on function private.stored_bytes(text) to authenticated, brand_system;
grant execute on function private.num_open_uploads() to authenticated;
reset role;

set role onbrand_owner;
create constraint trigger count_bytes after insert or delete on storage.objects
  deferrable initially deferred for each row execute function private.tg_count_bytes();
reset role;
