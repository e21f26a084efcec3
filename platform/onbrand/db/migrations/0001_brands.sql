-- Whose: schemas, helpers of the row policies, users, brands, members.
-- The roles exist already: onbrand.db.logins makes them, since they belong to the cluster and not to one database.

revoke all on schema public from public;
create schema app authorization onbrand_owner;
create schema private authorization onbrand_owner;
create schema storage authorization onbrand_owner;
create schema audit authorization onbrand_owner;
create schema identity authorization onbrand_identity;
grant usage on schema app, storage, private to authenticated, brand_system, onbrand_definer;
grant usage on schema private to anon, onbrand_dispatcher, onbrand_identity;
grant usage on schema app to onbrand_identity;
grant usage on schema audit to authenticated, onbrand_definer;
grant create on schema private to onbrand_definer, onbrand_identity;

-- A function is nobody's to call until it is granted, later ones included.
alter default privileges for role onbrand_owner revoke execute on functions from public;
alter default privileges for role onbrand_definer revoke execute on functions from public;
alter default privileges for role onbrand_identity revoke execute on functions from public;

set role onbrand_owner;

create table app.brands (
  id text primary key check (id ~ '^[a-z0-9][a-z0-9-]{1,62}$' and id !~ '^(us|eu|ap|sa|ca|me|af|il)-'),
  name text not null check (char_length(name) between 1 and 200),
  home_region text not null default 'us-east-1' check (home_region ~ '^[a-z0-9-]{2,32}$'),
  user_id uuid not null,
  created_at timestamptz not null default clock_timestamp()
);

create table app.brand_users (
  brand_id text not null references app.brands,
  user_id uuid not null,
  role text not null check (role in ('member', 'admin')),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, user_id)
);
create index brand_users_by_user on app.brand_users (user_id, brand_id);

create table audit.events (
  seq bigint not null,
  brand_id text not null,
  at timestamptz not null,
  actor text not null,
  action text not null,
  detail jsonb not null,
  prev bytea,
  hash bytea not null,
  primary key (brand_id, seq)
);

-- Numbers in names (logo-001, flux-lora-v2, 2024-12-04-002): taken here, never given twice, not even after a deletion.
create table app.numbers (
  brand_id text not null references app.brands,
  series text not null check (series ~ '^[a-z0-9:.-]{1,80}$'),
  last bigint not null check (last > 0),
  primary key (brand_id, series)
);

reset role;

-- Helpers of the policies. Their owner may pass by row security but may read memberships, and little else.
grant select on app.brand_users to onbrand_definer;
grant insert on app.brand_users to onbrand_definer;
grant select, insert on audit.events to onbrand_definer;
grant select, insert, update on app.numbers to onbrand_definer;

set role onbrand_definer;

create function private.uid() returns uuid
language sql stable security definer set search_path = '' as $$
  select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;

create function private.ctx(k text) returns text
language sql stable security definer set search_path = '' as $$
  select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> k
$$;

-- A brand-bound credential narrows what its user may see; it never widens it.
create function private.my_brands() returns text[]
language sql stable security definer set search_path = '' as $$
  select coalesce(array_agg(bu.brand_id), '{}') from app.brand_users bu
  where bu.user_id = private.uid()
    and (private.ctx('brand_id') is null or bu.brand_id = private.ctx('brand_id'))
$$;

create function private.my_admin_brands() returns text[]
language sql stable security definer set search_path = '' as $$
  select coalesce(array_agg(bu.brand_id), '{}') from app.brand_users bu
  where bu.user_id = private.uid() and bu.role = 'admin'
    and (private.ctx('brand_id') is null or bu.brand_id = private.ctx('brand_id'))
$$;

-- May the caller act in brand b at all? As a member, or with a ticket of that brand.
create function private.acts_in(b text) returns boolean
language sql stable security definer set search_path = '' as $$
  select case current_setting('role', true)
    when 'authenticated' then b = any (private.my_brands())
    when 'brand_system' then b = private.ctx('brand_id')
    else false end
$$;

-- The first of n fresh numbers of a series of a brand.
create function private.next_number(b text, what text, n integer) returns bigint
language plpgsql volatile security definer set search_path = '' as $$
declare taken bigint;
begin
  if not coalesce(private.acts_in(b), false) or n not between 1 and 500 then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  insert into app.numbers as c (brand_id, series, last) values (b, what, n)
  on conflict (brand_id, series) do update set last = c.last + excluded.last
  returning c.last into taken;
  return taken - n + 1;
end $$;

create function private.audit_append(b text, act text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare p bytea; s bigint; t timestamptz := clock_timestamp();
begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('audit:' || b, 0));
  select e.hash, e.seq into p, s from audit.events e where e.brand_id = b order by e.seq desc limit 1;
  s := coalesce(s, 0) + 1;
  insert into audit.events values (s, b, t, act, what, d, p, sha256(convert_to(concat_ws('|',
    s::text, b, extract(epoch from t)::text, act, what, d::text, encode(coalesce(p, ''::bytea), 'hex')), 'utf8')));
end $$;

-- Write one line into the brand's chained record; the actor is who the session is, not what it says.
create function private.record(b text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  perform private.audit_append(b, coalesce(private.uid()::text, 'system:' || private.ctx('job_id')), what, d);
end $$;

-- Who makes a brand is its first admin.
create function private.tg_found_brand() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  insert into app.brand_users (brand_id, user_id, role) values (new.id, new.user_id, 'admin');
  return null;
end $$;

-- The last admin never goes away. The lock makes two admins who drop each other wait in turn.
create function private.tg_keep_an_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  if old.role <> 'admin' then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('members:' || old.brand_id, 0));
  if not exists (select 1 from app.brand_users bu where bu.brand_id = old.brand_id and bu.role = 'admin') then
    raise exception 'a brand keeps at least one admin' using errcode = 'OB001';
  end if;
  return null;
end $$;

reset role;

grant execute on function private.uid(), private.ctx(text), private.my_brands(), private.my_admin_brands()
  to authenticated, brand_system, onbrand_owner, onbrand_identity;
grant execute on function private.next_number(text, text, integer), private.record(text, text, jsonb)
  to authenticated, brand_system;
grant execute on function private.tg_found_brand(), private.tg_keep_an_admin() to onbrand_owner;

-- Users: behind their own owner, reached only through functions.
set role onbrand_identity;

create table identity.users (
  id uuid primary key default gen_random_uuid(),
  email text not null unique check (email = lower(email) and char_length(email) between 3 and 254),
  password_hash text not null,
  created_at timestamptz not null default clock_timestamp()
);
alter table identity.users enable row level security;
alter table identity.users force row level security;
create policy own_code on identity.users to onbrand_identity using (true) with check (true);

create function private.sign_up(email text, password_hash text) returns table (id uuid, created_at timestamptz)
language sql volatile security definer set search_path = '' as $$
  insert into identity.users as u (email, password_hash) values (lower(sign_up.email), sign_up.password_hash)
  returning u.id, u.created_at
$$;

create function private.find_login(email text) returns table (id uuid, password_hash text)
language sql stable security definer set search_path = '' as $$
  select u.id, u.password_hash from identity.users u where u.email = lower(find_login.email)
$$;

create function private.me() returns table (id uuid, email text, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email, u.created_at from identity.users u where u.id = private.uid()
$$;

-- Only an admin of the brand may ask who has an address, to make them a member.
create function private.find_user(b text, email text) returns uuid
language sql stable security definer set search_path = '' as $$
  select u.id from identity.users u where u.email = lower(find_user.email) and b = any (private.my_admin_brands())
$$;

-- Addresses of the members whom the caller may see: oneself; for an admin, the brand's.
create function private.member_emails(b text) returns table (user_id uuid, email text)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email from identity.users u join app.brand_users bu on bu.user_id = u.id where bu.brand_id = b
$$;

reset role;
grant execute on function private.sign_up(text, text), private.find_login(text) to anon;
grant execute on function private.me(), private.find_user(text, text), private.member_emails(text) to authenticated;

set role onbrand_owner;

create trigger found_brand after insert on app.brands for each row execute function private.tg_found_brand();
create trigger keep_an_admin after update or delete on app.brand_users
  for each row execute function private.tg_keep_an_admin();

create function app.tg_brand_immutable() returns trigger
language plpgsql set search_path = '' as $$
begin
  if new.brand_id is distinct from old.brand_id then
    raise exception 'brand_id is immutable' using errcode = '42501';
  end if;
  return new;
end $$;

-- The wall: forced row security, one restrictive policy per family of roles, and a brand_id that never changes.
-- Every later migration calls this for each new table that has brand_id.
create procedure app.build_wall(t regclass)
language plpgsql set search_path = '' as $$
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy wall_user on %s as restrictive for all to authenticated '
    'using (brand_id = any ((select private.my_brands())::text[])) '
    'with check (brand_id = any ((select private.my_brands())::text[]))', t);
  execute format('create policy wall_system on %s as restrictive for all to brand_system '
    'using (brand_id = (select private.ctx(''brand_id''))) '
    'with check (brand_id = (select private.ctx(''brand_id'')))', t);
  execute format('create trigger brand_immutable before update on %s '
    'for each row execute function app.tg_brand_immutable()', t);
end $$;
revoke execute on procedure app.build_wall(regclass) from public;

alter table app.brands enable row level security;
alter table app.brands force row level security;
create policy wall_user on app.brands as restrictive for select to authenticated
  using (id = any ((select private.my_brands())::text[]));
create policy wall_system on app.brands as restrictive for all to brand_system
  using (id = (select private.ctx('brand_id'))) with check (id = (select private.ctx('brand_id')));
create policy member_select on app.brands for select to authenticated using (true);
create policy member_insert on app.brands for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.ctx('brand_id')) is null);
create policy system_select on app.brands for select to brand_system using (true);
grant select on app.brands to authenticated, brand_system;
grant insert (id, name, home_region, user_id) on app.brands to authenticated;

call app.build_wall('app.brand_users');
create policy member_select on app.brand_users for select to authenticated
  using (user_id = (select private.uid()) or brand_id = any ((select private.my_admin_brands())::text[]));
create policy admin_insert on app.brand_users for insert to authenticated
  with check (brand_id = any ((select private.my_admin_brands())::text[]));
create policy admin_update on app.brand_users for update to authenticated
  using (brand_id = any ((select private.my_admin_brands())::text[]))
  with check (brand_id = any ((select private.my_admin_brands())::text[]));
create policy admin_delete on app.brand_users for delete to authenticated
  using (brand_id = any ((select private.my_admin_brands())::text[]));
create policy identity_select on app.brand_users for select to onbrand_identity
  using (brand_id = any ((select private.my_brands())::text[])
    and (user_id = (select private.uid()) or brand_id = any ((select private.my_admin_brands())::text[])));
grant select, delete on app.brand_users to authenticated;
grant insert (brand_id, user_id, role) on app.brand_users to authenticated;
grant update (role) on app.brand_users to authenticated;
grant select on app.brand_users to onbrand_identity;

call app.build_wall('app.numbers');

call app.build_wall('audit.events');
create policy admin_select on audit.events for select to authenticated
  using (brand_id = any ((select private.my_admin_brands())::text[]));
grant select on audit.events to authenticated;

reset role;
