-- depends: 0001_isolation
-- Brands, their members, and the counters of numbers in names.
set role onbrand_owner;

create table app.brands (
  id text primary key check (id ~ '^[a-z0-9][a-z0-9-]{1,62}$' and id !~ '^(us|eu|ap|sa|ca|me|af|il)-'),
  name text not null check (char_length(name) between 1 and 200),
  home_region text not null default 'us-east-1'
    check (home_region ~ '^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$'),
  user_id uuid not null,
  created_at timestamptz not null default clock_timestamp()
);
-- For tg_limit_brands, over all brands; see brand_users_by_user.
create index brands_by_user on app.brands (uuid_send(user_id));
alter index app.brands_by_user alter column 1 set statistics 0;

create table app.brand_users (
  brand_id text not null references app.brands,
  user_id uuid not null,
  role text not null check (role in ('member', 'admin')),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, user_id)
);
-- For functions that look up the brands of a user. An index on user_id itself would let a caller who may run SQL search
-- all brands. PostgreSQL never evaluates an expression that is not leakproof before the isolation policies.
create index brand_users_by_user on app.brand_users (uuid_send(user_id), brand_id);
alter index app.brand_users_by_user alter column 1 set statistics 0;

-- Numbers in names (logo-001, flux-lora-v2, 2024-12-04-002). A number is never given twice, not even after a deletion.
create table app.numbers (
  brand_id text not null references app.brands,
  series text not null check (series ~ '^[a-z0-9:.-]{1,80}$'),
  last bigint not null check (last > 0),
  primary key (brand_id, series)
);

reset role;

-- The owner of the functions in `private` reads memberships and little else.
grant select, insert, delete on app.brand_users to onbrand_definer;
-- A row lock needs the right to update a column. This column gives nobody a right.
grant update (created_at) on app.brand_users to onbrand_definer;
grant select, insert, update on app.numbers to onbrand_definer;
grant select on app.brands to onbrand_definer, onbrand_operator;

set role onbrand_definer;

-- The brands that the credential reaches: at most n (null: all) with ids after `after`. The claims of such a
-- transaction name no brand, or the one that the credential is bound to.
create function private.my_brands(after text, n integer)
returns table (id text, name text, home_region text, role text, created_at timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := private.claims();
  bound_to text := c ->> 'bound_to';
begin
  if c is null or (bound_to is null and not private.is_credential_valid())
     or (bound_to is not null and private.my_role() is null) then return; end if;
  return query
    select b.id, b.name, b.home_region, bu.role, b.created_at
    from app.brand_users bu join app.brands b on b.id = bu.brand_id
    where uuid_send(bu.user_id) = uuid_send((c ->> 'sub')::uuid) and bu.brand_id > coalesce(my_brands.after, '')
      and (bound_to is null or bu.brand_id = bound_to)
    order by bu.brand_id limit my_brands.n;
end $$;

-- Take n new numbers of a series and return the first. A user may take numbers of assets and documents only.
create function private.next_number(brand text, series_name text, n integer) returns bigint
language plpgsql volatile security definer set search_path = '' as $$
declare taken bigint;
begin
  if not coalesce(private.may_act_in(brand), false) or n not between 1 and 500
     or (current_setting('role', true) = 'authenticated' and not coalesce(
       series_name ~ '^asset:(logo|product|person|packaging|other)$' or series_name ~ '^document:', false)) then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  insert into app.numbers as c (brand_id, series, last) values (brand, series_name, n)
  on conflict (brand_id, series) do update set last = c.last + excluded.last
  returning c.last into taken;
  return taken - n + 1;
end $$;

-- The creator of a brand is its first admin.
create function private.tg_add_first_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  insert into app.brand_users (brand_id, user_id, role) values (new.id, new.user_id, 'admin');
  return null;
end $$;

-- A brand keeps at least one admin. The lock serializes two admins who remove each other.
create function private.tg_keep_an_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  if old.role <> 'admin' then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', old.brand_id));
  if not exists (select 1 from app.brand_users bu where bu.brand_id = old.brand_id and bu.role = 'admin') then
    raise exception 'a brand keeps at least one admin' using errcode = 'OB001';
  end if;
  return null;
end $$;

-- Lock the row of an admin until the end of the transaction; raise 42501 if there is none. A concurrent removal or
-- demotion waits for this transaction, or this transaction waits for it and is refused.
create function private.lock_admin(brand text, admin_id uuid) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform 1 from app.brand_users bu where bu.brand_id = brand and bu.user_id = admin_id and bu.role = 'admin' for share;
  if not found then
    raise exception 'no admin of this brand any more' using errcode = '42501';
  end if;
end $$;

-- The three triggers below run after the row policies, so that a caller without access locks nothing and learns
-- nothing.
--
-- The creator of the row stays an admin until the end of the transaction.
create function private.tg_creator_is_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.lock_admin(new.brand_id, new.user_id);
  return null;
end $$;

-- The creator of the row stays a member until the end of the transaction. This takes the lock that a foreign key would
-- take: the role may change, the membership may not end.
create function private.tg_creator_is_member() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform 1 from app.brand_users bu where bu.brand_id = new.brand_id and bu.user_id = new.user_id for key share;
  if not found then
    raise exception 'no member of this brand any more' using errcode = '42501';
  end if;
  return null;
end $$;

-- A user who changes or ends another user's membership stays an admin until the end of the transaction.
create function private.tg_actor_is_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  if old.user_id is distinct from private.uid() then
    perform private.lock_admin(old.brand_id, private.uid());
  end if;
  return null;
end $$;

-- Leave a brand. Every member may, except the last admin. The membership is locked before the audit trail, in the same
-- order as a removal locks them. The function writes the event itself: callers may not record `member.*` unless admin.
create function private.leave_brand(brand text) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.may_act_in(brand), false) or not private.has_scope('manage') then
    raise exception 'no membership to end' using errcode = '42501';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', brand));
  perform 1 from app.brand_users bu where bu.brand_id = brand and bu.user_id = private.uid() for update;
  perform private.audit_append(brand, case when private.ctx('key_id') is null then 'user' else 'key' end,
    private.uid(), private.ctx('key_id'), 'member.remove', jsonb_build_object('user_id', private.uid()));
  delete from app.brand_users bu where bu.brand_id = brand and bu.user_id = private.uid();
  return found;
end $$;

reset role;

grant execute on function private.my_brands(text, integer), private.leave_brand(text) to authenticated;
grant execute on function private.next_number(text, text, integer) to authenticated, brand_system;
grant execute on function private.tg_add_first_admin(), private.tg_keep_an_admin(), private.tg_creator_is_admin(),
  private.tg_creator_is_member(), private.tg_actor_is_admin() to onbrand_owner;

set role onbrand_owner;

-- The brand of this table is its id, so its policies are not those of app.enable_brand_isolation.
alter table app.brands enable row level security;
alter table app.brands force row level security;
do $$ begin
  execute format('create policy brand_isolation_user on app.brands as restrictive for select to authenticated '
    'using (%s)',
    app.brand_isolation_condition('id', 'private.my_brand()'));
  execute format('create policy brand_isolation_system on app.brands as restrictive for all to brand_system using (%s)',
    app.brand_isolation_condition('id', 'private.ticket_brand()'));
end $$;
create policy function_owner on app.brands to onbrand_definer, onbrand_operator using (true);
call app.disable_column_statistics('app.brands');
call app.require_scope('app.brands', 'insert', 'manage');
create policy member_select on app.brands for select to authenticated using (true);
create policy member_insert on app.brands for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.ctx('bound_to')) is null);
create policy system_select on app.brands for select to brand_system using (true);
grant select on app.brands to authenticated, brand_system;
grant insert (id, name, home_region, user_id) on app.brands to authenticated;
grant select (id, user_id) on app.brands to onbrand_definer;
create trigger add_first_admin after insert on app.brands for each row execute function private.tg_add_first_admin();

-- Nobody inserts a membership directly. Three functions change memberships: tg_add_first_admin, accept_invitation and
-- leave_brand. Admins change roles and remove members.
call app.enable_brand_isolation('app.brand_users');
call app.require_scope('app.brand_users', 'update', 'manage');
call app.require_scope('app.brand_users', 'delete', 'manage');
create policy member_select on app.brand_users for select to authenticated
  using (user_id = (select private.uid()) or (select private.is_admin()));
create policy admin_update on app.brand_users for update to authenticated
  using ((select private.is_admin())) with check ((select private.is_admin()));
create policy admin_delete on app.brand_users for delete to authenticated
  using ((select private.is_admin()));
create policy identity_select on app.brand_users for select to onbrand_identity
  using (brand_id = (select private.my_brand()) and (user_id = (select private.uid()) or (select private.is_admin())));
grant select, delete on app.brand_users to authenticated;
grant update (role) on app.brand_users to authenticated;
grant select on app.brand_users to onbrand_identity;
create trigger keep_an_admin after update or delete on app.brand_users
  for each row execute function private.tg_keep_an_admin();
create trigger actor_is_admin after update or delete on app.brand_users
  for each row when (current_user = 'authenticated') execute function private.tg_actor_is_admin();

call app.enable_brand_isolation('app.numbers');

reset role;
